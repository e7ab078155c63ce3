// The browser of samples: search, filters, orders and the list.

const FILTERS = ["split", "type", "series", "role", "language"];
const PAGE = 60;
const browser = {
  samples: [],
  texts: [],
  images: null,
  found: [],
  listed: PAGE,
  current: null,
  open: new Set(),
};

function startSamples() {
  Object.assign(browser, readData("sample-data"));
  browser.samples.forEach((sample, number) => {
    sample.number = number;
  });
  for (const name of FILTERS) {
    const values = [...new Set(browser.samples.map((sample) => sample[name]))];
    if (name === "role" || name === "series") values.sort((a, b) => a.localeCompare(b));
    const select = document.querySelector(`[data-filter="${name}"]`);
    options(select, [["", "all"], ...values.map((value) => [value, value])]);
    select.addEventListener("change", search);
    select.parentElement.hidden = values.length < 2;
  }
  options(byId("order"), [
    ["", "of the files"],
    ["spread", "models differ most"],
    ...REPORT.models.flatMap((model, index) => [
      [`low ${index}`, `${model.name}: lowest first`],
      [`high ${index}`, `${model.name}: highest first`],
    ]),
    ["gaps", "not scored first"],
  ]);
  byId("order").addEventListener("change", search);
  byId("search-reviews").addEventListener("change", search);
  byId("clear").addEventListener("click", () => {
    clearFilters();
    search();
  });
  let waiting;
  byId("search").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(search, 120);
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target instanceof Element && event.target.closest("input, select, textarea");
    if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.key === "j") step(1);
    if (event.key === "k") step(-1);
  });
  addEventListener("hashchange", openFromAddress);
  search();
  openFromAddress();
}

function clearFilters() {
  byId("search").value = "";
  for (const name of FILTERS) document.querySelector(`[data-filter="${name}"]`).value = "";
}

function showCharacter(name) {
  clearFilters();
  document.querySelector('[data-filter="role"]').value = name;
  search();
  byId("samples").scrollIntoView();
}

/** Lower-case text that the search looks through, made when it is first needed. */
function haystack(sample, withReviews) {
  sample.plain ??= [
    sample.id,
    sample.role,
    sample.series,
    sample.other,
    sample.last,
    sample.reference,
    ...sample.history.flat(),
    ...answersOf(sample).map((answer) => answer ?? ""),
  ]
    .join("\n")
    .toLowerCase();
  if (!withReviews) return sample.plain;
  sample.full ??= [
    sample.plain,
    ...reviewsOf(sample).flatMap((own) =>
      own ? [...own.first, ...own.swapped].map((review) => review?.text ?? "") : [],
    ),
  ]
    .join("\n")
    .toLowerCase();
  return sample.full;
}

// Read when they are needed: the texts of many models together would fill the memory.
const answersOf = (sample) => readData(`answers-${sample.number}`);
const reviewsOf = (sample) => readData(`reviews-${sample.number}`);

/** A model's overall score of a sample; null without one. */
const score = (sample, index) => sample.scores[index] || (sample.scores[index] === 0 ? 0 : null);

function spread(sample, models) {
  const known = models.map((model) => score(sample, model.index)).filter((value) => value !== null);
  return known.length > 1 ? Math.max(...known) - Math.min(...known) : null;
}

function search() {
  const wanted = byId("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const withReviews = byId("search-reviews").checked;
  const values = FILTERS.map((name) => [name, document.querySelector(`[data-filter="${name}"]`).value]).filter(
    ([, value]) => value,
  );
  browser.found = browser.samples.filter(
    (sample) =>
      values.every(([name, value]) => sample[name] === value) &&
      wanted.every((word) => haystack(sample, withReviews).includes(word)),
  );
  const [order, index] = byId("order").value.split(" ");
  const models = chosenModels();
  const keys = {
    spread: [(sample) => spread(sample, models), true],
    low: [(sample) => score(sample, index), false],
    high: [(sample) => score(sample, index), true],
    gaps: [(sample) => models.filter((model) => sample.scores[model.index] === null).length, true],
  };
  if (order in keys) {
    const [key, descending] = keys[order];
    browser.found.sort((a, b) => compare(key(a), key(b), descending));
  }
  browser.listed = PAGE;
  if (browser.found.length) open(browser.found.includes(browser.current) ? browser.current : browser.found[0]);
  else drawList();
}

function drawList() {
  const total = browser.samples.length;
  byId("count").textContent =
    browser.found.length === total
      ? count(total, "sample")
      : `${browser.found.length.toLocaleString("en")} of ${count(total, "sample")}`;
  const items = browser.found.slice(0, browser.listed).map((sample) => make("li", {}, listItem(sample)));
  if (browser.found.length > browser.listed) {
    items.push(
      make(
        "li",
        {},
        make("button", {
          type: "button",
          class: "more",
          text: `Show ${Math.min(PAGE, browser.found.length - browser.listed)} more`,
          on: {
            click: () => {
              browser.listed += PAGE;
              drawList();
            },
          },
        }),
      ),
    );
  }
  byId("list").replaceChildren(...items);
}

function listItem(sample) {
  const scores = chosenModels()
    .filter((model) => sample.scores[model.index] !== false)
    .map((model) =>
      make("span", { title: model.name }, dot(model.colour), fixed(sample.scores[model.index], 2)),
    );
  return make(
    "button",
    {
      type: "button",
      "aria-current": sample === browser.current ? "true" : null,
      on: {
        click: () => {
          open(sample);
          if (matchMedia("(max-width: 900px)").matches) byId("detail").scrollIntoView();
        },
      },
    },
    make("div", { class: "who", dir: "auto", text: sample.role }),
    make("div", { class: "what", text: `${sample.split}${DOT}${sample.type}` }),
    make("div", { class: "scores" }, ...scores),
  );
}

/** Opens the sample that the address names (`#sample=In-Test/<type>/<id>`); whether there is one. */
function openFromAddress() {
  if (!location.hash.startsWith("#sample=")) return false;
  let wanted;
  try {
    wanted = decodeURIComponent(location.hash.slice(8));
  } catch {
    return false;
  }
  const sample = browser.samples.find((other) => address(other) === wanted);
  if (!sample) return false;
  if (sample !== browser.current) {
    open(sample);
    byId("samples").scrollIntoView();
  }
  return true;
}

const address = (sample) => `${sample.split}/${sample.type}/${sample.id}`;

function step(by) {
  const next = browser.found[browser.found.indexOf(browser.current) + by];
  if (next) open(next);
}

function open(sample) {
  browser.current = sample;
  const place = browser.found.indexOf(sample);
  if (place >= browser.listed) browser.listed = place + PAGE;
  drawList();
  const chosen = byId("list").querySelector('[aria-current="true"]');
  if (chosen) byId("list").scrollTop = chosen.offsetTop - byId("list").offsetTop - 80;
  drawSample(sample, place);
}
