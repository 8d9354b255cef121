// Elements, numbers and units. Texts of the data reach the page as text nodes only, never as markup.
'use strict';

const started = performance.now();

/** An element with attributes, event handlers (functions) and children; texts become text nodes. */
function h(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for a drawing. */
function s(tag, attributes = {}, ...children) {
  return filled(document.createElementNS('http://www.w3.org/2000/svg', tag), attributes, children);
}

function filled(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === 'function') element.addEventListener(name, value);
    else if (name === 'style') for (const [key, to] of Object.entries(value)) element.style.setProperty(key, to);
    else element.setAttribute(name, value === true ? '' : value);
  }
  element.append(...children.flat(3).filter(child => child !== null && child !== undefined && child !== false));
  return element;
}

const byId = id => document.getElementById(id);
/** Replaces the contents of an element. The button that has the focus keeps it. */
function show(id, ...children) {
  const buttons = () => [...byId(id).querySelectorAll('button, input')];
  const at = buttons().indexOf(document.activeElement);
  byId(id).replaceChildren(...children.flat(3).filter(Boolean));
  if (at >= 0) buttons()[at]?.focus({ preventScroll: true });
}

const sum = (list, of = x => x) => list.reduce((total, x) => total + of(x), 0);
const px = x => Math.round(x * 100) / 100;

/** A number with three digits and the largest unit that makes it at least 1. */
function scaled(x, units) {
  let [factor, unit] = units[0];
  for (const [f, u] of units) if (Math.abs(x) >= f) [factor, unit] = [f, u];
  const y = x / factor,
    size = Math.abs(y);
  return `${y.toFixed(size < 10 ? 2 : size < 100 ? 1 : 0)} ${unit}`;
}
const seconds = x =>
  x === 0
    ? '0'
    : scaled(x, [
        [1e-6, 'µs'],
        [1e-3, 'ms'],
        [1, 's'],
      ]);
const bytes = x =>
  Math.abs(x) < 1e3
    ? x === 0
      ? '0'
      : `${Math.round(x)} B`
    : scaled(x, [
        [1e3, 'kB'],
        [1e6, 'MB'],
        [1e9, 'GB'],
        [1e12, 'TB'],
      ]);
const count = x => x.toLocaleString('en-US');
/** A number with its noun. */
const counted = (x, noun) => `${count(x)} ${noun}${x === 1 ? '' : 's'}`;
const percent = x => `${(100 * x).toFixed(1)}%`;

/** How much `b` is more or less than `a`. */
function change(a, b, text, better = -1) {
  const close = Math.abs(b - a) <= 1e-9 * Math.max(Math.abs(a), Math.abs(b));
  if (close) return h('span', { class: 'quiet' }, '=');
  return h('span', { class: better * (b - a) > 0 ? 'less' : 'more' }, (b < a ? '−' : '+') + text(Math.abs(b - a)));
}
