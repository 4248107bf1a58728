// What a drawn page tells of itself: overflow, levels of its headings, text that is too faint, controls without a name,
// holes in its rows of figures. Given to the browser as one expression.
() => {
  const isShown = (element) => element.checkVisibility({ visibilityProperty: true });

  /** [red, green, blue, alpha] from 0 to 1 of a computed colour. */
  function parsed(text) {
    const numbers = text.match(/[\d.]+(e-?\d+)?/g).map(Number);
    const scale = text.startsWith("rgb") ? 255 : 1; // else color(srgb …)
    return [...numbers.slice(0, 3).map((one) => one / scale), numbers[3] ?? 1];
  }

  const over = (upper, lower) => [0, 1, 2].map((i) => upper[i] * upper[3] + lower[i] * (1 - upper[3])).concat(1);

  function behind(element) {
    const layers = [];
    for (let one = element; one; one = one.parentElement) layers.push(parsed(getComputedStyle(one).backgroundColor));
    return layers.reverse().reduce((lower, upper) => over(upper, lower), [1, 1, 1, 1]);
  }

  function luminance(colour) {
    const [red, green, blue] = colour.map((one) => (one <= 0.04045 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  }

  function contrast(one, other) {
    const [low, high] = [luminance(one), luminance(other)].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  }

  function faintTexts() {
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const found = new Set();
    while (walker.nextNode()) {
      const element = walker.currentNode.parentElement;
      const text = walker.currentNode.textContent.trim();
      if (!text || !isShown(element) || element.closest("[aria-disabled], noscript, .visually-hidden, .skip")) continue;
      const style = getComputedStyle(element);
      const ground = behind(element);
      const ink = over(parsed(element instanceof SVGElement ? style.fill : style.color), ground);
      const size = parseFloat(style.fontSize);
      const isLarge = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
      const ratio = contrast(ink, ground);
      if (ratio < (isLarge ? 3 : 4.5)) found.add(`${element.localName}.${element.className} ${ratio.toFixed(2)}: ${text.slice(0, 40)}`);
    }
    return [...found];
  }

  const nameOf = (control) => control.textContent.trim() || control.ariaLabel || control.labels?.[0]?.textContent.trim();

  /** Figures that leave more than a gap free on their right, unless another one stands there. */
  function holes() {
    return [...document.querySelectorAll(".figures")].flatMap((group) => {
      const right = group.getBoundingClientRect().right;
      const boxes = [...group.children].map((place) => [place.dataset.name, place.getBoundingClientRect()]);
      return boxes
        .filter(([, box]) => box.right < right - 2 && !boxes.some(([, other]) => other.left > box.right && Math.abs(other.top - box.top) < 2))
        .map(([name]) => name);
    });
  }

  const { scrollWidth, clientWidth } = document.documentElement;
  return {
    overflow: scrollWidth > clientWidth ? [`${scrollWidth - clientWidth} px`] : [],
    headings: [...document.querySelectorAll("h1, h2, h3, h4, h5, h6")].filter(isShown).map((one) => Number(one.localName[1])),
    faint: faintTexts(),
    unnamed: [...document.querySelectorAll("a, button, input, select, [tabindex='0']")].filter((one) => isShown(one) && !nameOf(one)).map((one) => one.outerHTML.slice(0, 120)),
    holes: holes(),
  };
}
