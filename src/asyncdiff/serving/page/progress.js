// The bar: a segment for each step, in the colour of its kind.

import { byId, element } from "./dom.js";
import { classOf, legend } from "./kinds.js";

const MANY = 120; // steps, of which the segments are drawn without gaps

export function begin(status) {
  byId("progress").hidden = false;
  byId("progress").scrollIntoView({ block: "nearest" });
  byId("bar").replaceChildren();
  byId("bar-legend").replaceChildren();
  byId("bar").removeAttribute("aria-valuenow");
  say(status);
}

export function say(status) {
  byId("status").textContent = status;
}

export function show({ step, steps, kinds }) {
  const bar = byId("bar");
  const total = steps ?? step;
  fill(bar, kinds, step, total);
  bar.setAttribute("aria-valuemax", total);
  bar.setAttribute("aria-valuenow", step);
  bar.setAttribute("aria-valuetext", `step ${step} of ${total}`);
  byId("bar-legend").replaceChildren(...legend(new Set(kinds)));
}

// Give a bar a segment for each of so many steps, of which some are done.
export function fill(bar, kinds, step, total) {
  if (bar.childElementCount !== total) {
    bar.replaceChildren(...Array.from({ length: total }, () => element("span")));
    bar.classList.toggle("dense", total > MANY);
  }
  for (const [place, segment] of [...bar.children].entries()) {
    segment.className = place < step ? classOf(kinds[place]) : "";
    segment.title = place < step ? `step ${place + 1}: ${kinds[place] ?? "no denoiser"}` : "";
  }
}
