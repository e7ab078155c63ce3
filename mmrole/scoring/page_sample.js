// One sample: its image, its dialogue, and every model's answer and reviews side by side.

function drawSample(sample, place) {
  const move = (by, label, name) =>
    make("button", {
      type: "button",
      text: label,
      title: name,
      "aria-label": name,
      disabled: !browser.found[place + by],
      on: { click: () => step(by) },
    });
  byId("detail").replaceChildren(
    make(
      "div",
      { class: "top" },
      make("h3", { dir: "auto", text: `${sample.role} with ${sample.other}` }),
      make("div", {}, move(-1, "‹", "Previous sample (k)"), " ", move(1, "›", "Next sample (j)")),
    ),
    make(
      "div",
      { class: "badges" },
      ...[sample.split, sample.type, sample.series, sample.language].map((text) =>
        make("span", { class: "badge", dir: "auto", text }),
      ),
      make("a", {
        class: "id",
        href: `#sample=${encodeURIComponent(address(sample))}`,
        title: "Link to this sample",
        text: sample.id,
      }),
    ),
    make("div", { class: "scene" }, picture(sample), conversation(sample)),
    ...reviewBoard(sample),
  );
}

function picture(sample) {
  browser.images ??= readData("image-data");
  const data = named(browser.images, sample.image);
  const image = data
    ? make("img", { src: data, alt: `Image ${sample.image}`, decoding: "async" })
    : sample.image === null
      ? make("div", { class: "no-image" }, "This sample has no image.")
      : make("div", { class: "no-image" }, "The image is not available:", make("br"), sample.image);
  return make("div", { class: "picture" }, image);
}

function conversation(sample) {
  const turn = (speaker, text, kind) =>
    make("div", { class: `turn ${kind}` }, make("div", { class: "speaker", dir: "auto", text: speaker }), words(text));
  const history = sample.history.map(([speaker, text]) => turn(speaker, text, speaker === sample.role ? "own" : ""));
  return make(
    "div",
    { class: "talk" },
    ...history,
    sample.last === null
      ? make("div", { class: "stage", text: `${sample.role} is asked to open the conversation.` })
      : sample.last
        ? turn(sample.other, sample.last, "")
        : null,
    turn(`${sample.role} (reference answer)`, sample.reference, "own reference"),
    make(
      "details",
      {},
      make("summary", { text: "The whole prompt" }),
      words(sample.prompt.map((index) => browser.texts[index]).join("\n\n\n"), "", 40000),
    ),
  );
}

function reviewBoard(sample) {
  const answers = answersOf(sample);
  const reviews = reviewsOf(sample);
  const models = chosenModels()
    .filter(({ index }) => answers[index] !== null)
    .map((model) => ({ model, answer: answers[model.index], own: reviews[model.index] }));
  const board = make("div", {
    class: "board",
    tabindex: "0",
    role: "region",
    "aria-label": "Answers and reviews",
    style: { gridTemplateColumns: `repeat(${models.length}, minmax(min(218px, 74vw), 1fr))` },
  });
  const cells = (className, content) =>
    models.map((entry, index) => make("div", { class: `${className}${index ? "" : " first"}` }, ...content(entry)));
  board.append(
    ...cells("head", ({ model }) => [
      dot(model.colour),
      make("span", { text: model.name }),
      make("b", { title: "Mean of the eight ratios", text: fixed(sample.scores[model.index]) }),
    ]),
    ...cells("", ({ answer, own }) => [
      answer.trim()
        ? words(answer)
        : make("div", { class: "empty", text: own.error ? `No answer, ${own.error}` : "Empty answer" }),
    ]),
  );
  REPORT.metrics.forEach((metric, number) => {
    const expanded = browser.open.has(metric);
    board.append(
      make(
        "div",
        { class: "band" },
        make("button", {
          type: "button",
          "aria-expanded": String(expanded),
          text: metric,
          data: { metric },
          on: { click: () => toggle(sample, [metric], !expanded) },
        }),
      ),
      ...cells("", ({ model, own }) => reviewCell(model, own.first[number], own.swapped[number], expanded)),
    );
  });
  const all = REPORT.metrics.every((metric) => browser.open.has(metric));
  const bar = make(
    "div",
    { class: "reviews-bar" },
    make("h3", { text: "Answers and their reviews" }),
    make("button", {
      type: "button",
      id: "toggle-reviews",
      text: all ? "Hide the texts of the reviews" : "Show the texts of the reviews",
      on: { click: () => toggle(sample, REPORT.metrics, !all) },
    }),
  );
  return [
    bar,
    make("p", {
      class: "note",
      text: "Scores are those of the answer against those of the reference; their ratio follows.",
    }),
    board,
  ];
}

function toggle(sample, metrics, visible) {
  for (const metric of metrics) visible ? browser.open.add(metric) : browser.open.delete(metric);
  const left = document.querySelector(".board").scrollLeft;
  drawSample(sample, browser.found.indexOf(sample));
  document.querySelector(".board").scrollLeft = left;
  const button =
    metrics.length === 1 ? document.querySelector(`[data-metric="${metrics[0]}"]`) : byId("toggle-reviews");
  button.focus({ preventScroll: true });
}

function reviewCell(model, review, swapped, expanded) {
  if (!review) return [make("div", { class: "empty", text: "no review" })];
  const content = [pairScore(model, review)];
  if (expanded) content.push(words(review.text, "review"));
  if (swapped) {
    content.push(make("div", { class: "speaker", text: "Reference shown first:" }), pairScore(model, swapped));
    if (expanded) content.push(words(swapped.text, "review"));
  }
  return content;
}

function pairScore(model, { score: pair, reason }) {
  if (!pair) return make("div", { class: "empty", text: `no score: ${reason}` });
  const [own, reference] = pair;
  const side = own > reference ? "above" : own < reference ? "below" : "";
  return make(
    "div",
    { class: "pair-score", title: model.name },
    dot(model.colour),
    make("b", { class: side, text: `${own} : ${reference}` }),
    make("i", { text: fixed(own / reference, 2) }),
  );
}
