"""The errors a user can act on; everything else is a defect and keeps its traceback."""


class TwotowerError(Exception):
    """Base of the errors whose message is one line: what is wrong, where, and what to do next."""


class ConfigError(TwotowerError):
    """The configuration cannot be used as written."""


class SchemaError(TwotowerError):
    """An input file or table does not have the shape that it was declared to have."""


class LeakageError(TwotowerError):
    """Something after the time cut would reach training."""


class ArtifactError(TwotowerError):
    """A directory of results is missing, unfinished or not what its manifest says."""


class BundleError(ArtifactError):
    """A bundle is damaged, or its parts do not belong together."""


class TrainingError(TwotowerError):
    """Training cannot go on, or would go on to a model that nobody should use."""
