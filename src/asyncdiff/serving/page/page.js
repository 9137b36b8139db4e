// The page: what the user asks for, and what comes of it.

import { byId, element, many } from "./dom.js";
import { counted } from "./kinds.js";
import { fileOf, psnr } from "./picture.js";
import * as progress from "./progress.js";
import { draw, models, sentence, ServiceError } from "./service.js";
import * as timelines from "./timeline.js";

let known = []; // the models
let underWay = null; // what ends the generation
let own = null; // the last picture, and all that belongs to it
let sequential = null; // the sequential one of the same

function model() {
  return known.find((each) => each.id === byId("model").value);
}

function tell(problem) {
  byId("problem").textContent = problem;
  byId("problem").hidden = !problem;
  if (problem) {
    byId("problem").scrollIntoView({ block: "nearest" });
  }
}

function tellError(error) {
  if (!(error instanceof ServiceError)) {
    console.error(error);
  }
  if (error.status === 401) {
    byId("key-field").hidden = false;
    byId("key").focus();
    tell(byId("key").value ? "The service does not know this key." : "The service asks for a key.");
    return;
  }
  tell(error instanceof ServiceError ? error.message : `Something went wrong in this page: ${error.message}`);
}

function setBusy(controller) {
  underWay = controller;
  byId("stop").disabled = !controller;
  byId("draw").disabled = byId("draw-sequential").disabled = Boolean(controller) || !known.length;
}

async function ask() {
  tell("");
  try {
    known = await models(byId("key").value);
  } catch (error) {
    known = [];
    byId("about").textContent = "Pictures, drawn by several devices at the same time.";
    tellError(error);
    setBusy(null);
    return;
  }
  byId("model").replaceChildren(...known.map(({ id }) => element("option", { value: id }, id)));
  byId("model").disabled = false;
  showModel();
  setBusy(null);
}

function showModel() {
  const { id, asyncdiff } = model();
  const [devices, replicas] = [many(asyncdiff.devices, "device"), many(asyncdiff.replicas, "replica")];
  byId("about").textContent = `${id} on ${devices}`;
  byId("devices").textContent = `(${replicas} of ${devices})`;
  byId("way").replaceChildren(...asyncdiff.ways.map(({ name, title }) => element("option", { value: name }, title)));
  byId("way").disabled = false;
  showWay();
  byId("steps").max = asyncdiff.max_steps;
  byId("steps").value ||= asyncdiff.steps;
  byId("prompt").maxLength = asyncdiff.max_prompt;
}

function chosenWay() {
  return model().asyncdiff.ways.find(({ name }) => name === byId("way").value);
}

function showWay() {
  byId("meaning").textContent = sentence(chosenWay().meaning);
}

async function drawOwn() {
  const way = chosenWay();
  const asked = { prompt: byId("prompt").value, model: model().id, steps: Number(byId("steps").value), settings: way.settings };
  const seed = byId("seed").value;
  const drawn = await drawAs(asked, seed === "" ? null : Number(seed), "");
  if (drawn) {
    [own, sequential] = [{ ...drawn, asked, way: way.title, model: model() }, null];
    await showPictures();
  }
}

async function drawSequential() {
  const settings = own.model.asyncdiff.sequential;
  const drawn = await drawAs({ ...own.asked, settings }, own.about.seed, "Sequential: ");
  if (drawn) {
    sequential = drawn;
    await showPictures();
    byId("pictures").scrollIntoView({ block: "nearest" });
  }
}

// One generation, from the request to the picture; null where there is none.
async function drawAs({ prompt, model: id, steps, settings }, seed, title) {
  const controller = new AbortController();
  setBusy(controller);
  tell("");
  progress.begin(`${title}asking …`);
  const request = { prompt, model: id, seed, n: 1, asyncdiff: { ...settings, steps, timeline: true } };
  try {
    let [kinds, drawn] = [[], null];
    for await (const event of draw(request, byId("key").value, controller.signal)) {
      if (event.type === "image_generation.queued") {
        progress.say(title + (event.before ? `waiting; ${many(event.before, "request")} before this one` : "it is the next one"));
      } else if (event.type === "image_generation.progress") {
        kinds = event.kinds;
        progress.show(event);
        const part = event.bar ? `part ${event.bar + 1}, ` : "";
        const kind = event.kind ? `: ${event.kind}` : "";
        progress.say(`${title}${part}step ${event.step} of ${event.steps ?? "?"}${kind}`);
      } else if (event.type === "image_generation.completed") {
        const about = event.asyncdiff;
        progress.say(`${title}done in ${seconds(about.seconds)}; steps: ${counted(kinds)}`);
        drawn = { file: fileOf(event.b64_json), about, kinds };
      }
    }
    return drawn;
  } catch (error) {
    if (controller.signal.aborted) {
      progress.say(`${title}stopped`);
    } else {
      progress.say(`${title}no picture`);
      tellError(error);
    }
  } finally {
    setBusy(null);
  }
  return null;
}

async function showPictures() {
  byId("pictures").hidden = false;
  const steps = `${own.asked.prompt}, seed ${own.about.seed}, ${many(own.asked.steps, "step")}`;
  showPicture(byId("own"), own, `${steps}: ${own.way}; ${seconds(own.about.seconds)} (${counted(own.kinds)})`);
  const settings = own.model.asyncdiff.sequential;
  byId("compare").hidden = Boolean(sequential);
  byId("draw-sequential").hidden = !settings;
  byId("sequential-hint").textContent = settings
    ? "The same prompt, seed and steps, all of them in full: the ordinary pipeline's picture."
    : "With shard no device has all of the weights, so that the service cannot draw the sequential one.";
  byId("sequential").hidden = byId("comparison").hidden = !sequential;
  if (sequential) {
    showPicture(byId("sequential"), sequential, `sequential; ${seconds(sequential.about.seconds)} (${counted(sequential.kinds)})`);
  }
  showTimelines();
  if (sequential) {
    showComparison(await psnr(own.file, sequential.file));
  }
}

function showPicture(figure, { file, kinds }, caption) {
  const image = figure.querySelector("img");
  URL.revokeObjectURL(image.src);
  image.src = URL.createObjectURL(file);
  image.alt = caption;
  figure.querySelector("figcaption").textContent = caption;
  progress.fill(figure.querySelector(".bar"), kinds, kinds.length, kinds.length);
  figure.hidden = false;
}

function showComparison(decibels) {
  const equal = decibels === Infinity;
  byId("psnr").textContent = equal ? "The two are equal, bit for bit." : `PSNR ${decibels.toFixed(2)} dB; from about 40 dB on a difference is hard to see.`;
  byId("psnr").dataset.value = decibels;
  const rows = [
    ["generation", own.about.timeline.seconds, sequential.about.timeline.seconds],
    ["whole request", own.about.seconds, sequential.about.seconds],
  ].map(([name, one, other]) =>
    element("tr", {}, element("th", { scope: "row" }, name), ...[seconds(one), seconds(other), `${(other / one).toFixed(2)}×`]
      .map((text) => element("td", {}, text))),
  );
  const head = ["", "this one", "sequential", "ratio"].map((text) => element("th", { scope: "col" }, text));
  byId("times").replaceChildren(element("tr", {}, ...head), ...rows);
  const { devices } = own.model.asyncdiff;
  const who = devices > 1 ? `Each of the ${devices} devices computes` : "The device computes";
  byId("times-hint").textContent =
    `${who} the whole of every sequential step, as one device alone would. ` +
    "A whole request is putting its settings on, the generation, and writing the file. All is measured once, with " +
    "whatever else this machine does; the first step after other settings is recorded, which takes longer.";
}

function showTimelines() {
  const found = [own, sequential].filter((each) => each?.about.timeline?.ranks.length);
  byId("timelines").hidden = !found.length;
  if (!found.length) {
    return;
  }
  const title = (each) => (each === own ? "this one" : "sequential");
  const longest = Math.max(...found.map((each) => each.about.timeline.seconds));
  const width = Math.max(byId("charts").clientWidth, 280) * Number(byId("zoom").value);
  byId("charts").replaceChildren(...found.map((each) => timelines.chart(each.about.timeline, title(each), longest, width)));
  byId("timeline-legend").replaceChildren(...timelines.legend(found.map((each) => each.about.timeline)));
  byId("numbers").replaceChildren(...found.map((each) => timelines.table(each.about.timeline, title(each))));
}

function seconds(number) {
  return `${number.toFixed(2)}\u00a0s`;
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  if (!byId("draw").disabled) {
    drawOwn().catch(tellError);
  }
});
byId("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    byId("form").requestSubmit();
  }
});
byId("key").addEventListener("keydown", (event) => {
  if (event.key === "Enter") {
    event.preventDefault();
    ask();
  }
});
byId("use-key").addEventListener("click", ask);
byId("model").addEventListener("change", showModel);
byId("way").addEventListener("change", showWay);
byId("stop").addEventListener("click", () => underWay?.abort());
byId("draw-sequential").addEventListener("click", () => drawSequential().catch(tellError));
byId("zoom").addEventListener("change", showTimelines);
window.addEventListener("resize", showTimelines);
ask();
