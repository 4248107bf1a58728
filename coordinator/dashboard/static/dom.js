// Elements without markup: text is always text, so nothing that a run holds can become a script.

const SVG = "http://www.w3.org/2000/svg";

/**
 * An HTML element.
 * @param {string} selector a tag with classes, "p.note.wide"
 * @param {...(object|Node|string|number|null|Array)} rest first, where it is a plain object: attributes (`onclick`
 *   takes a function, true an empty attribute, null and false none); then children, nested as wanted
 */
export function h(selector, ...rest) {
  return build(document.createElement(selector.split(".")[0]), selector, rest);
}

/** An SVG element, as `h`. */
export function s(selector, ...rest) {
  return build(document.createElementNS(SVG, selector.split(".")[0]), selector, rest);
}

function build(element, selector, rest) {
  const classes = selector.split(".").slice(1);
  if (classes.length) element.classList.add(...classes);
  if (isAttributes(rest[0])) setAttributes(element, rest.shift());
  append(element, rest);
  return element;
}

function isAttributes(value) {
  return value !== null && typeof value === "object" && !Array.isArray(value) && !(value instanceof Node);
}

function setAttributes(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.classList.add(...value.split(" ").filter(Boolean));
    else element.setAttribute(name, value === true ? "" : value);
  }
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false || child === "") continue;
    element.append(child);
  }
}

/** Say something to those who do not see the page. */
export function announce(sentence) {
  document.getElementById("announcer").textContent = sentence;
}

/** Let the browser save a file that was made here. */
export function download(name, blob) {
  const address = URL.createObjectURL(blob);
  const link = h("a", { href: address, download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 1000);
}

/** Call `act` once things have been quiet for `milliseconds`. */
export function debounced(act, milliseconds) {
  let timer = 0;
  return (...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => act(...args), milliseconds);
  };
}
