// The least contrast by WCAG 2 of the texts that are shown, and of the controls; evaluated in the page.
() => {
  const numbers = (colour) => colour.match(/[\d.]+/g).map(Number);
  const over = ([r, g, b, a = 1], [R, G, B]) => [r * a + R * (1 - a), g * a + G * (1 - a), b * a + B * (1 - a)];
  const light = (colour) => colour.slice(0, 3).map((part) => part / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
    .reduce((sum, part, place) => sum + part * [0.2126, 0.7152, 0.0722][place], 0);
  const behind = (element) => {
    if (!element) return [255, 255, 255];
    const own = numbers(getComputedStyle(element).backgroundColor);
    return own[3] === 0 ? behind(element.parentElement) : over(own, own.length === 4 ? behind(element.parentElement) : own);
  };
  const contrast = (element, colour) => {
    const paper = behind(element);
    const [a, b] = [light(over(numbers(colour), paper)), light(paper)].sort((one, other) => other - one);
    return (a + 0.05) / (b + 0.05);
  };
  const texts = [...document.querySelectorAll("body *")].filter((one) => one.checkVisibility()
    && [...one.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  const words = texts.map((one) => [contrast(one, getComputedStyle(one).color), one.textContent.trim().slice(0, 40)]);
  const controls = [...document.querySelectorAll(".judge, .box")].map((one) => {
    const style = getComputedStyle(one);
    return [contrast(one.parentElement, one.matches(".box") ? style.borderTopColor : style.color), one.className];
  });
  const least = (all) => all.sort(([one], [other]) => one - other)[0];
  return { texts: least(words), controls: least(controls), count: words.length };
}
