"use strict";
const form = document.querySelector("form");
const list = document.getElementById("rows");
const rows = Array.from(list.children);
const orders = {
  index: row => Number(row.dataset.index),
  most: row => -Number(row.dataset.ratio),
  least: row => Number(row.dataset.ratio),
};
function update() {
  const order = orders[form.elements.order.value];
  const low = Number(form.elements.low.value);
  const high = form.elements.high.value === "" ? 1 : Number(form.elements.high.value);
  const outcome = form.elements.outcome.value;
  let shown = 0;
  rows.sort((a, b) => order(a) - order(b) || orders.index(a) - orders.index(b));
  for (const row of rows) {
    const ratio = Number(row.dataset.ratio);
    row.hidden = ratio < low || ratio > high || (outcome !== "" && row.dataset.outcome !== outcome);
    shown += row.hidden ? 0 : 1;
    list.append(row);
  }
  form.querySelector("output").textContent = shown + " shown";
}
form.addEventListener("input", update);
form.addEventListener("submit", event => event.preventDefault());
form.hidden = false;
update();
