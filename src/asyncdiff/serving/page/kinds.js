// The kinds of steps, in words. What a step was is told by the service.

import { element } from "./dom.js";

const MEANINGS = {
  full: "full: the whole denoiser",
  divided: "divided: the whole denoiser, its tokens shared out",
  chained: "chained: the whole denoiser, device after device",
  round: "round: all parts at the same time",
  bridged: "bridged: forecast",
  stored: "stored: predicted by an earlier step",
};
const OTHER = "other";

// A name of a class, whatever the service says.
export function classOf(kind) {
  return Object.hasOwn(MEANINGS, kind ?? "") ? kind : OTHER;
}

export function legend(kinds) {
  return Object.keys(MEANINGS).filter((kind) => kinds.has(kind)).map((kind) => entry(kind, MEANINGS[kind]));
}

export function entry(name, text) {
  return element("li", {}, element("i", { class: name }), text);
}

// "5 full, 15 round"
export function counted(kinds) {
  const counts = new Map();
  for (const kind of kinds) {
    counts.set(kind ?? OTHER, (counts.get(kind ?? OTHER) ?? 0) + 1);
  }
  return [...counts].map(([kind, count]) => `${count} ${kind}`).join(", ");
}
