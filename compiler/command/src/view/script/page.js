// Draws the whole page.
function render() {
  quiet();
  renderHeader();
  renderTotals();
  renderStep();
  renderTimeline();
  renderModules();
  renderDetail();
  renderChanges();
  renderSearch();
}

/** The module that the page begins with: the one that takes most of the step by itself. */
function busiest() {
  const [{ view, sums }] = plans,
    cost = at => sum(sums.own[at].compute) + sum(sums.own[at].waiting);
  const best = view.modules
    .map((_, at) => at)
    .slice(1)
    .reduce((best, at) => (cost(at) > cost(best) ? at : best), 0);
  return view.modules[best].path;
}

/** Modules in which nothing runs are closed at first: their operations belong to the module around them. */
function closeIdle() {
  for (const row of tree.filter(row => row.inner)) {
    const runs = plan =>
      tree.some(
        inner =>
          inner.parent === row.path &&
          plan.at.has(inner.path) &&
          COSTS.some(cost => sum(plan.sums.all[plan.at.get(inner.path)][cost]) > 0),
      );
    if (!plans.some(runs)) state.closed.add(row.path);
  }
}

state.module = busiest();
closeIdle();
render();
document.documentElement.dataset.ready = px(performance.now() - started);
let resizing = 0;
window.addEventListener('resize', () => {
  cancelAnimationFrame(resizing);
  resizing = requestAnimationFrame(() => {
    renderStep();
    renderTimeline();
  });
});
window.matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () => canvases.forEach(paint));
