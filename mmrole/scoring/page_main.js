// Puts the page together: what the reader sees first is drawn first.

function drawView() {
  drawTable();
  drawLegend();
  drawRadar();
  drawBars();
}

/** All that shows models. */
function drawModels() {
  drawView();
  drawPairs();
  drawGroups();
  drawHeat();
  byId("table-note").replaceChildren(...notes().map((text) => make("div", { text })));
}

function start() {
  startModels(() => {
    drawModels();
    search();
  });
  byId("summary").textContent = [
    `reviews by ${REPORT.judge}`,
    count(REPORT.models.length, "model"),
    count(REPORT.n_samples, "sample"),
    count(REPORT.n_images, "image"),
    `intervals from ${REPORT.draws.toLocaleString("en")} draws`,
  ].join(DOT);
  options(
    byId("view"),
    REPORT.views.map((view) => [view, REPORT.view_labels[view]]),
  );
  options(
    byId("bar-metric"),
    measureOptions.filter(([name]) => !(name in REPORT.dimensions)),
  );
  options(byId("heat-metric"), measureOptions);
  options(
    byId("group"),
    REPORT.facets.map((facet) => [facet, facet]),
  );
  byId("paper-label").hidden = !REPORT.paper.length;
  options(byId("pair-choice"), pairChoices());
  byId("pair-choice").addEventListener("change", drawPairs);
  byId("view").addEventListener("change", (event) => {
    shown.view = event.target.value;
    drawView();
  });
  byId("paper").addEventListener("change", (event) => {
    shown.paper = event.target.checked;
    drawView();
  });
  byId("bar-metric").addEventListener("change", drawBars);
  byId("group").addEventListener("change", drawGroups);
  byId("heat-metric").addEventListener("change", drawHeat);
  byId("heat-order").addEventListener("change", drawHeat);
  let width = innerWidth;
  addEventListener("resize", () => {
    if (innerWidth === width) return; // a phone's address bar comes and goes
    width = innerWidth;
    drawRadar();
    drawBars();
  });
  drawModels();
  drawScale();
  setTimeout(startSamples); // megabytes of text: after the first paint
}

start();
