"use strict";
(function () {
  // Choosing samples. Without a script every prompt is shown, one below the other.
  const form = document.getElementById("choose");
  if (form) {
    const prompt = document.getElementById("choose-prompt");
    const sampling = document.getElementById("choose-sampling");
    const boxes = Array.from(form.querySelectorAll("input[name=run]"));
    const show = function () {
      const runs = new Set(boxes.filter((box) => box.checked).map((box) => box.value));
      for (const sample of document.querySelectorAll(".sample")) {
        sample.toggleAttribute("data-off", sample.dataset.prompt !== prompt.value);
      }
      for (const answer of document.querySelectorAll(".answer")) {
        const hidden = !runs.has(answer.dataset.run) ||
          (sampling.value !== "" && answer.dataset.sampling !== sampling.value);
        answer.toggleAttribute("data-off", hidden);
      }
    };
    form.hidden = false;
    form.addEventListener("change", show);
    form.addEventListener("submit", (event) => event.preventDefault());
    show();
  }
  // A run in a legend can be picked out in all plots.
  let lit = null;
  const items = Array.from(document.querySelectorAll(".legend li[data-series]"));
  const paint = function () {
    document.documentElement.classList.toggle("dimmed", lit !== null);
    for (const mark of document.querySelectorAll(".series")) {
      mark.classList.toggle("lit", mark.classList.contains("series-" + lit));
    }
    for (const item of items) {
      item.firstElementChild.setAttribute("aria-pressed", String(item.dataset.series === lit));
    }
  };
  for (const item of items) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...item.childNodes);
    button.addEventListener("click", function () {
      lit = lit === item.dataset.series ? null : item.dataset.series;
      paint();
    });
    item.append(button);
  }
  paint();
})();
