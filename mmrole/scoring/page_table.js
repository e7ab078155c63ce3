// The tables: results, pairs of models, groups of samples.

const shown = { view: REPORT.views[0], paper: true, sort: { key: "Overall", descending: true } };

/** The rows of a view: the models that have samples in it, and the paper's rows of the same samples. */
function viewRows() {
  const models = chosenModels()
    .filter((model) => shown.view in model.scores)
    .map((model) => ({ name: model.name, model, colour: model.colour, scores: model.scores[shown.view] }));
  const paper = REPORT.paper
    .filter((row) => shown.paper && row.view === shown.view)
    .map((row) => ({
      name: row.name,
      paper: true,
      colour: PAPER_COLOUR,
      scores: Object.fromEntries(Object.entries(row.scores).map(([name, value]) => [name, [value, null, null, null]])),
    }));
  return [...models, ...paper];
}

const columns = () => [
  { key: "name", label: "Model", value: (row) => row.name.toLowerCase(), ascending: true },
  ...["Overall", ...REPORT.metrics].map((key) => ({
    key,
    label: key,
    estimate: (row) => row.scores[key] ?? [null, null, null, null],
    value: (row) => row.scores[key]?.[0] ?? null,
  })),
  ...(REPORT.models.some((model) => shown.view in model.length)
    ? [
        {
          key: "controlled",
          label: "Overall, length-controlled",
          estimate: (row) => row.model?.length[shown.view]?.score ?? [null, null, null, null],
          value: (row) => row.model?.length[shown.view]?.score[0] ?? null,
        },
        {
          key: "length",
          label: "Answer / reference length",
          digits: 2,
          value: (row) => row.model?.length[shown.view]?.ratio ?? null,
        },
      ]
    : []),
  { key: "n", label: "Samples scored", digits: 0, value: (row) => row.scores.Overall[3] },
];

function compare(first, second, descending) {
  if (first === null || second === null) return (first === null) - (second === null); // unknown is last, either way
  const order = first < second ? -1 : first > second ? 1 : 0;
  return descending ? -order : order;
}

function drawTable() {
  const all = columns();
  const by = all.find((column) => column.key === shown.sort.key) ?? all[1];
  const rows = viewRows().sort((a, b) => compare(by.value(a), by.value(b), shown.sort.descending));
  const best = Object.fromEntries(
    all
      .filter((column) => column.estimate)
      .map((column) => [
        column.key,
        Math.max(...rows.filter((row) => !row.paper).map((row) => column.value(row) ?? -Infinity)),
      ]),
  );
  const header = make(
    "tr",
    {},
    ...all.map((column) =>
      make(
        "th",
        {
          scope: "col",
          "aria-sort": column === by ? (shown.sort.descending ? "descending" : "ascending") : null,
        },
        make("button", {
          type: "button",
          text: column.label,
          data: { sort: column.key },
          on: { click: () => sortBy(column) },
        }),
      ),
    ),
  );
  const body = rows.map((row) =>
    make(
      "tr",
      { class: row.paper ? "paper" : null },
      make("th", { scope: "row" }, dot(row.colour), row.name + (row.paper ? " (paper)" : "")),
      ...all.slice(1).map((column) => tableCell(row, column, best)),
    ),
  );
  byId("table").replaceChildren(make("thead", {}, header), make("tbody", {}, ...body));
}

function tableCell(row, column, best) {
  const value = column.value(row);
  const isBest =
    column.estimate && !row.paper && value !== null && value === best[column.key] && REPORT.models.length > 1;
  const cell = make("td", { class: isBest ? "best" : null, text: fixed(value, column.digits ?? 3) });
  if (column.estimate) cell.append(make("small", { text: range(column.estimate(row)) }));
  return cell;
}

function sortBy(column) {
  const again = shown.sort.key === column.key;
  shown.sort = { key: column.key, descending: again ? !shown.sort.descending : !column.ascending };
  drawTable();
  document.querySelector(`[data-sort="${column.key}"]`).focus();
}

/** What was not scored, and what order and length of the answers do, in a sentence for each model. */
function notes() {
  const models = chosenModels();
  const lines = models
    .filter((model) => model.coverage.expected > model.coverage.scored)
    .map((model) => {
      const parts = Object.entries(model.coverage.gaps)
        .filter(([, n]) => n)
        .map(([name, n]) => `${name}: ${n}`);
      return `${model.name}: ${model.coverage.scored} of ${model.coverage.expected} samples (${parts.join(", ")}).`;
    });
  const bias = models
    .filter((model) => model.position)
    .map(
      ({ name, position }) =>
        `${name}: ${fixed(position.first[0])} shown first, ${fixed(position.second[0])} shown second; difference ` +
        `${fixed(position.difference[0])}${inBrackets(range(position.difference))}, ${pValue(position.p, true)}; ` +
        `both orders agree in ${Math.round(100 * position.agreement)} % of the reviews.`,
    );
  const lengths = models
    .map((model) => [model.name, Object.values(model.length).at(-1)])
    .map(([name, length]) => `${name}: r = ${fixed(length.pearson[0], 2)}, \u03c1 = ${fixed(length.spearman[0], 2)}.`);
  return [
    ...(lines.length ? [`Scored: ${lines.join(" ")}`] : []),
    ...(bias.length ? [`Position bias: ${bias.join(" ")}`] : []),
    "Length-controlled: the score read off at equal length of answer and reference, from a line fitted to the model's " +
      "own samples; length is the median ratio, in characters. Correlation of the overall score with the logarithm " +
      `of that ratio (Pearson, Spearman): ${lengths.join(" ")}`,
  ];
}

/** A range behind its number; nothing where too few images give none. */
function inBrackets(text) {
  return text && ` (${text})`;
}

function pValue(p, named = false) {
  if (p === null) return DASH;
  return (named ? "p " : "") + (p < 0.001 ? "< 0.001" : (named ? "= " : "") + p.toFixed(3));
}

function drawPairs() {
  byId("pairs").hidden = !REPORT.pairs.length;
  document.querySelector('nav a[href="#pairs"]').hidden = !REPORT.pairs.length;
  byId("pairs-lead").textContent =
    "Difference of the overall scores on the samples of both models (0.75 In-Test + 0.25 Out-Test where these are of " +
    "both sets); sign-flip test by image, p-values corrected for the number of pairs (Holm).";
  const head = ["Pair", "Verdict", "Difference", "p, corrected", "Samples"];
  const pairs = chosenPairs();
  byId("pairs-note").textContent = `${pairs.length.toLocaleString("en")} of ${count(REPORT.pairs.length, "pair")}`;
  const rows = pairs.map((pair) =>
    make(
      "tr",
      {},
      make("th", { scope: "row", text: `${pair.first} ${MINUS} ${pair.second}` }),
      make("td", { class: "text verdict", text: pair.verdict }),
      make("td", { text: fixed(pair.difference[0]) }, make("small", { text: range(pair.difference) })),
      make("td", { text: pValue(pair.corrected) }),
      make("td", { text: String(pair.n) }),
    ),
  );
  byId("pair-table").replaceChildren(
    make(
      "thead",
      {},
      make(
        "tr",
        {},
        ...head.map((text, index) => make("th", { scope: "col", class: index < 2 ? "text" : null, text })),
      ),
    ),
    make("tbody", {}, ...rows),
  );
}

const MANY_PAIRS = 200;

/** What the table of pairs can show: all of them, those near in rank, or those of one model. */
function pairChoices() {
  const near = [["near", `models at most ${REPORT.neighbours} ranks apart`]];
  const all = [["all", "every two models"]];
  return [
    ...(REPORT.pairs.length > MANY_PAIRS ? [...near, ...all] : all),
    ...REPORT.models.map((model) => [model.index, `${model.name} and each other model`]),
  ];
}

function chosenPairs() {
  const choice = byId("pair-choice").value;
  const rank = new Map(REPORT.models.map((model) => [model.name, model.index]));
  return REPORT.pairs.filter(({ first, second }) => {
    const ranks = [rank.get(first), rank.get(second)];
    if (choice === "near") {
      if (Math.abs(ranks[0] - ranks[1]) > REPORT.neighbours) return false;
    } else if (choice !== "all" && !ranks.includes(Number(choice))) return false;
    return isWanted(first) || isWanted(second);
  });
}

function drawGroups() {
  const facet = byId("group").value;
  const models = chosenModels();
  const names = [...new Set(models.flatMap((model) => Object.keys(model.groups[facet] ?? {})))];
  const head = make(
    "tr",
    {},
    make("th", { scope: "col", text: "Overall" }),
    ...models.map((model) => make("th", { scope: "col" }, dot(model.colour), model.name)),
  );
  const rows = names.map((name) =>
    make(
      "tr",
      {},
      make("th", { scope: "row", text: name }),
      ...models.map((model) => {
        const estimate = named(model.groups[facet], name)?.Overall ?? [null, null, null, 0];
        const small = make("small", { text: [range(estimate), `n = ${estimate[3]}`].filter(Boolean).join(DOT) });
        return make("td", { text: fixed(estimate[0]) }, small);
      }),
    ),
  );
  byId("group-table").replaceChildren(make("thead", {}, head), make("tbody", {}, ...rows));
}
