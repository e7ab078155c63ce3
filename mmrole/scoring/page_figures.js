// The figures: a radar of the eight metrics, bars with intervals, a heat map by character.

const inRadar = new Set(REPORT.models.slice(0, 6).map((model) => model.name));
const radarKey = (row) => (row.paper ? `paper ${row.name}` : row.name);

function drawLegend() {
  byId("legend").replaceChildren(
    ...viewRows().map((row) =>
      make(
        "button",
        {
          type: "button",
          class: "chip",
          "aria-pressed": String(inRadar.has(radarKey(row))),
          on: { click: () => toggleRadar(radarKey(row)) },
          data: { series: radarKey(row) },
        },
        dot(row.colour),
        row.name + (row.paper ? " (paper)" : ""),
      ),
    ),
  );
}

function toggleRadar(key) {
  if (!inRadar.delete(key)) inRadar.add(key);
  drawLegend();
  drawRadar();
  [...byId("legend").children].find((chip) => chip.dataset.series === key)?.focus();
}

/** As wide as its place, so that its text has the size of the page's. */
const figureWidth = (id) => Math.min(640, Math.max(300, byId(id).clientWidth));

function drawRadar() {
  const rows = viewRows().filter((row) => inRadar.has(radarKey(row)));
  const values = rows.flatMap((row) => REPORT.metrics.map((metric) => row.scores[metric]?.[0])).filter(Number.isFinite);
  const low = Math.floor(Math.min(0.9, ...values) * 10 - 1e-9) / 10;
  const high = Math.max(1.1, Math.ceil(Math.max(...values, 1) * 10) / 10);
  const width = figureWidth("radar");
  const radius = Math.min(165, width / 2 - 100);
  const height = 2 * radius + 74;
  const at = (index, value) => {
    const angle = (2 * Math.PI * index) / REPORT.metrics.length - Math.PI / 2;
    const distance = (radius * (value - low)) / (high - low);
    return [width / 2 + distance * Math.cos(angle), height / 2 + distance * Math.sin(angle)];
  };
  const ring = (value) =>
    REPORT.metrics
      .map((_, index) =>
        at(index, value)
          .map((x) => x.toFixed(1))
          .join(","),
      )
      .join(" ");
  const rings = [];
  for (let value = low; value <= high + 1e-9; value += 0.1) rings.push(Math.round(value * 10) / 10);
  const step = rings.length * 22 > radius ? 2 : 1;
  const svg = makeSvg(
    "svg",
    {
      viewBox: `0 0 ${width} ${height}`,
      role: "img",
      "aria-label": `Radar of ${rows.map((row) => row.name).join(", ")}`,
    },
    ...rings.map((value) => makeSvg("polygon", { points: ring(value), class: value === 1 ? "par" : "grid" })),
    ...REPORT.metrics.map((metric, index) => {
      const [x2, y2] = at(index, high);
      return makeSvg("line", { x1: width / 2, y1: height / 2, x2, y2, class: "grid" });
    }),
    ...REPORT.metrics.map((metric, index) => radarLabel(metric, at(index, high + (high - low) * 0.09), width)),
    ...rows.map((row) => radarShape(row, at, low)),
    ...rings
      .filter((_, index) => index % step === 0)
      .map((value) =>
        makeSvg("text", {
          x: width / 2 + 4,
          y: at(0, value)[1] + 4,
          class: "tick",
          text: value.toFixed(1),
        }),
      ),
  );
  byId("radar").replaceChildren(svg);
}

function radarLabel(metric, [x, y], width) {
  const anchor = Math.abs(x - width / 2) < 20 ? "middle" : x < width / 2 ? "end" : "start";
  const parts = metric.split(" ");
  const lines = anchor === "middle" || parts.length < 2 ? [metric] : parts;
  return makeSvg(
    "text",
    { x, y: y + 4 - 7 * (lines.length - 1), "text-anchor": anchor },
    ...lines.map((text, index) => makeSvg("tspan", { x, dy: index ? 14 : 0, text })),
  );
}

function radarShape(row, at, low) {
  const known = REPORT.metrics.map((metric, index) => at(index, row.scores[metric]?.[0] ?? low));
  const points = known.map((point) => point.map((x) => x.toFixed(1)).join(",")).join(" ");
  return makeSvg(
    "g",
    {},
    makeSvg("polygon", {
      points,
      fill: row.colour,
      "fill-opacity": row.paper ? 0 : 0.07,
      stroke: row.colour,
      "stroke-width": 2,
      "stroke-linejoin": "round",
      "stroke-dasharray": row.paper ? "5 4" : null,
    }),
    ...REPORT.metrics.map((metric, index) =>
      makeSvg(
        "circle",
        { cx: known[index][0], cy: known[index][1], r: 3, fill: row.colour },
        makeSvg("title", { text: `${row.name}${DOT}${metric}: ${fixed(row.scores[metric]?.[0] ?? null)}` }),
      ),
    ),
  );
}

function drawBars() {
  const measure = byId("bar-metric").value;
  const rows = viewRows()
    .filter((row) => Number.isFinite(row.scores[measure]?.[0]))
    .sort((a, b) => b.scores[measure][0] - a.scores[measure][0]);
  const width = figureWidth("bars");
  const [left, right, step, top] = [Math.min(210, width * 0.36), 66, rows.length > 8 ? 27 : 44, 8];
  const height = top + rows.length * step + 26;
  const most = Math.max(1.1, ...rows.map((row) => row.scores[measure][2] ?? row.scores[measure][0])) * 1.02;
  const x = (value) => left + ((width - left - right) * value) / most;
  const ticks = [0, 0.2, 0.4, 0.6, 0.8, 1, 1.2, 1.4, 1.6, 1.8, 2].filter((value) => value <= most);
  const svg = makeSvg(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Bars: ${measure}` },
    ...ticks.flatMap((value) => [
      makeSvg("line", { x1: x(value), x2: x(value), y1: top, y2: height - 22, class: value === 1 ? "par" : "grid" }),
      makeSvg("text", { x: x(value), y: height - 8, class: "tick", "text-anchor": "middle", text: value.toFixed(1) }),
    ]),
    ...rows.map((row, index) => bar(row, row.scores[measure], x, top + index * step, step, left)),
  );
  byId("bars").replaceChildren(svg);
}

function bar(row, estimate, x, y, step, left) {
  const [value, low, high] = estimate;
  const middle = y + step / 2;
  const name = row.name + (row.paper ? " (paper)" : "");
  const whisker =
    low === null
      ? []
      : [
          [low, low, -4, 4],
          [high, high, -4, 4],
          [low, high, 0, 0],
        ].map(([from, to, up, down]) =>
          makeSvg("line", { x1: x(from), x2: x(to), y1: middle + up, y2: middle + down, class: "whisker" }),
        );
  return makeSvg(
    "g",
    {},
    makeSvg("title", { text: `${name}: ${fixed(value)} ${low === null ? "" : `(95 %: ${range(estimate)})`}` }),
    makeSvg("text", {
      x: left - 8,
      y: middle + 4,
      "text-anchor": "end",
      text: name.length > left / 7.8 ? `${name.slice(0, left / 7.8 - 1)}…` : name,
    }),
    makeSvg("rect", {
      x: left,
      y: y + step * 0.16,
      width: Math.max(0, x(value) - left),
      height: step * 0.68,
      rx: 2,
      fill: row.colour,
      "fill-opacity": row.paper ? 0.45 : 0.85,
    }),
    ...whisker,
    makeSvg("text", { x: x(high ?? value) + 7, y: middle + 4, text: fixed(value) }),
  );
}

/** Orange below 1, blue above, paler the nearer; half a point away is the full colour. */
function heatColour(value) {
  const strength = Math.min(1, Math.abs(value - 1) / 0.5);
  const end = value < 1 ? [203, 80, 12] : [12, 104, 168];
  const [red, green, blue] = end.map((part) => Math.round(246 + (part - 246) * strength ** 0.8));
  const light = 0.299 * red + 0.587 * green + 0.114 * blue > 140;
  return { background: `rgb(${red},${green},${blue})`, color: light ? "#14171b" : "#ffffff" };
}

function drawHeat() {
  const measure = byId("heat-metric").value;
  const models = chosenModels();
  const names = [...new Set(models.flatMap((model) => Object.keys(model.groups.character ?? {})))];
  const rows = names.map((name) => {
    const estimates = models.map((model) => named(model.groups.character, name)?.[measure] ?? null);
    const values = estimates.map((estimate) => estimate?.[0]).filter(Number.isFinite);
    const mean = values.length ? values.reduce((sum, value) => sum + value, 0) / values.length : null;
    const spread = values.length ? Math.max(...values) - Math.min(...values) : null;
    return { name, series: named(REPORT.series, name) ?? "", estimates, mean, spread };
  });
  const orders = {
    series: (a, b) => a.series.localeCompare(b.series) || a.name.localeCompare(b.name),
    mean: (a, b) => compare(a.mean, b.mean, false),
    spread: (a, b) => compare(a.spread, b.spread, true),
  };
  rows.sort(orders[byId("heat-order").value]);
  const head = make(
    "tr",
    {},
    make("th", { scope: "col", text: count(rows.length, "character") }),
    ...models.map((model) => make("th", { scope: "col", text: model.name })),
  );
  byId("heat").replaceChildren(
    make("thead", {}, head),
    make(
      "tbody",
      {},
      ...rows.map((row) =>
        make(
          "tr",
          {},
          make("th", { scope: "row", title: row.series }, row.name, make("small", { text: row.series })),
          ...row.estimates.map((estimate, index) => make("td", {}, heatCell(row, models[index], estimate))),
        ),
      ),
    ),
  );
}

function heatCell(row, model, estimate) {
  const value = estimate?.[0] ?? null;
  return make("button", {
    type: "button",
    text: fixed(value, 2),
    style: value === null ? {} : heatColour(value),
    title: `${row.name}, ${model.name}: ${fixed(value)} (${count(estimate?.[3] ?? 0, "sample")})`,
    on: { click: () => showCharacter(row.name) },
  });
}

function drawScale() {
  const steps = [0.5, 0.7, 0.85, 1, 1.15, 1.3, 1.5];
  byId("scale").replaceChildren(
    make("b", { text: "0.5" }),
    ...steps.map((value) => make("i", { style: { background: heatColour(value).background } })),
    make("b", { text: "1.5" }),
  );
}
