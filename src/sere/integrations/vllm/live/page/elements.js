// Small helpers: elements, and numbers as people read them. All text is set as text, never as HTML.
const SVG = 'http://www.w3.org/2000/svg';
const byId = (id) => document.getElementById(id);

function make(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value !== null && value !== undefined) element.setAttribute(name, value);
  }
  for (const child of [children ?? []].flat()) {
    if (child !== null && child !== undefined) element.append(child);
  }
  return element;
}
const h = (name, attributes, children) => make(document.createElement(name), attributes, children);
const s = (name, attributes, children) => make(document.createElementNS(SVG, name), attributes, children);

const NONE = '–';
const fixed = (value, digits) => (value === null || value === undefined ? NONE : value.toFixed(digits));
const percent = (value, digits = 0) => (value === null || value === undefined ? NONE : `${(100 * value).toFixed(digits)} %`);
const whole = (value) => Math.round(value).toLocaleString('en-US');

// A number and its unit; `form` writes the number.
function bytes(value, form = (left, unit) => left.toFixed(left < 10 && unit ? 1 : 0)) {
  if (value === null || value === undefined) return [NONE, ''];
  const units = ['B', 'KB', 'MB', 'GB', 'TB', 'PB'];
  let unit = 0;
  let left = value;
  while (left >= 1000 && unit < units.length - 1) { left /= 1000; unit += 1; }
  return [form(left, unit), units[unit]];
}

const clock = (at) => new Date(1000 * at).toLocaleTimeString('en-GB');

// Sets a text only if it is another one, so that screen readers are not told the same each second.
function write(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function show(element, visible) {
  if (element.hidden === visible) element.hidden = !visible;
}
