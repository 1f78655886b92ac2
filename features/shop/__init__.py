"""The simulated shop: its words, its catalogue, what shoppers ask, what it shows and what they click."""
