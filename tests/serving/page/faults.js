// What a screen reader would stumble over; evaluated in the page.
() => {
  const all = (selector) => [...document.querySelectorAll(selector)];
  const name = (one) => one.getAttribute("aria-label") || one.textContent.trim() || one.title
    || one.labels?.[0]?.textContent || document.getElementById(one.getAttribute("aria-labelledby"))?.textContent;
  const ids = all("[id]").map((one) => one.id);
  const refers = ["aria-labelledby", "aria-describedby", "aria-controls", "for"];
  return [
    ...all("button, a, input, [role=region], section[aria-label]").filter((one) => !name(one)).map((one) => `no name: ${one.outerHTML}`),
    ...all("select").filter((one) => !one.getAttribute("aria-label") && !one.labels.length).map((one) => `no label: ${one.id}`),
    ...all("img:not([alt])").map((one) => `no alt: ${one.src}`),
    ...ids.filter((id, place) => ids.indexOf(id) !== place).map((id) => `twice: ${id}`),
    ...refers.flatMap((key) => all(`[${key}]`).filter((one) => !ids.includes(one.getAttribute(key))).map((one) => `${key} of ${one.id}`)),
    ...all("[tabindex]").filter((one) => one.tabIndex > 0).map((one) => `tabindex ${one.tabIndex}`),
    ...all("table").filter((one) => !one.querySelector("th[scope=col]")).map(() => "a table without heads"),
    ...(document.querySelectorAll("h1").length === 1 ? [] : ["not one h1"]),
  ];
}
