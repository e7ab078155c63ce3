// Which models the page shows: those whose names hold what is typed, and of these the best.

const FEW = 8; // so many need no choice
const STEPS = [12, 25, 50];

/** Parts of names that are typed, lower-case. */
const wordsOfModels = () => byId("model-words").value.toLowerCase().split(/[\s,]+/).filter(Boolean);

function isWanted(name) {
  const words = wordsOfModels();
  return !words.length || words.some((word) => name.toLowerCase().includes(word));
}

/** The models that tables, figures and samples show, the best first. */
const chosenModels = () => REPORT.models.filter((model) => isWanted(model.name)).slice(0, Number(byId("model-most").value));

function startModels(draw) {
  const total = REPORT.models.length;
  const steps = STEPS.filter((step) => step < total);
  options(byId("model-most"), [...steps.map((step) => [step, step]), [total, `all ${total}`]]);
  if (total > 2 * STEPS[0]) byId("model-most").value = STEPS[0];
  else byId("model-most").value = total;
  byId("model-controls").hidden = total <= FEW;
  byId("model-most").addEventListener("change", draw);
  let waiting;
  byId("model-words").addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(draw, 150);
  });
}
