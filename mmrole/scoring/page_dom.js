// What the other parts of the page stand on: the data, and elements whose text is never read as markup.
"use strict";

const PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9", "#8A63D2", "#A6761D"];
const PAPER_COLOUR = "#8a939d";
const MINUS = "\u2212",
  DASH = "\u2013",
  DOT = " \u00b7 ";

const byId = (id) => document.getElementById(id);
const readData = (id) => JSON.parse(byId(id).textContent);

/** An element. `attributes` may have `text`, `on` (listeners), `style` and `data`; children are nodes or strings. */
function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function makeSvg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", tag), attributes, children);
}

function fill(element, { text, on = {}, style = {}, data = {}, ...attributes }, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  for (const [event, listener] of Object.entries(on)) element.addEventListener(event, listener);
  Object.assign(element.style, style);
  Object.assign(element.dataset, data);
  if (text !== undefined) element.textContent = text;
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Text of a model or a data set: its line breaks and its direction are its own, and very long text opens on demand. */
function words(text, className = "", limit = 8000) {
  const block = make("div", { class: `words ${className}`, dir: "auto", text: text.slice(0, limit) });
  if (text.length > limit) {
    const more = make("button", {
      type: "button",
      text: `… show all ${text.length.toLocaleString("en")} characters`,
      on: {
        click: () => {
          block.textContent = text;
        },
      },
    });
    block.append(make("div", {}, more));
  }
  return block;
}

function options(select, pairs) {
  select.replaceChildren(...pairs.map(([value, label]) => make("option", { value, text: label })));
}

/** A value by a name that models and data sets may have given, `constructor` among them. */
const named = (values, name) => (values && Object.hasOwn(values, name) ? values[name] : undefined);

const fixed = (value, digits = 3) => (value === null ? DASH : value.toFixed(digits).replace("-", MINUS));

const range = ([, low, high], digits = 3) =>
  low === null ? "" : `${fixed(low, digits)}${low < 0 ? " to " : DASH}${fixed(high, digits)}`;

const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;

const dot = (colour) => make("span", { class: "dot", style: { background: colour }, "aria-hidden": "true" });

const REPORT = readData("report-data");
REPORT.models.forEach((model, index) => {
  model.index = index;
  model.colour = PALETTE[index % PALETTE.length];
});

const measureOptions = [
  ["Overall", "Overall"],
  ...Object.keys(REPORT.dimensions).map((name) => [name, name[0].toUpperCase() + name.slice(1)]),
  ...REPORT.metrics.map((metric) => [metric, metric]),
];
