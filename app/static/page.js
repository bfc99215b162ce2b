// The page: a form that posts jobs, and the newest jobs.
// Their status is fetched twice a second while one of them is under way.

import { Problem, ask, json, useKey } from "./api.js";
import { showPreviews } from "./images.js";
import { JobView } from "./job.js";

const BUSY_MS = 500;
const QUIET_MS = 3000;
const MOST_JOBS = 20;
const SENDABLE = /^[!-~]+$/; // in a header; fetch throws at all else

const form = document.querySelector("form#new");
const keyForm = document.querySelector("form#key");
const service = document.querySelector("#service");
const sheet = document.querySelector("#sheet");
const jobs = document.querySelector("#jobs");
const views = new Map();
let cards = new Map();
let wake = () => {};

/** Show what is wrong with something that the user did; with nothing, that all is well. */
function showProblem(problem) {
  document.querySelector("#problem").textContent = problem?.message ?? "";
}

/** Show how the service is. The same text is not set again, since it would be read out again. */
function showService(text) {
  if (service.textContent !== text) service.textContent = text;
}

async function listModels() {
  const { models, default: usual } = await json("v1/models");
  cards = new Map(models.map((card) => [card.name, card]));
  form.model.replaceChildren(...models.map(({ name }) => new Option(name, name, name === usual, name === usual)));
  showCard();
}

/** Offer what the model's card allows, as the form's choices. */
function showCard() {
  const { samplers, defaults, schedule, residual_variance, learned_variance, classes, links } = cards.get(form.model.value);
  const variances = ["fixed_small", "fixed_large"];
  if (residual_variance) variances.push("analytic");
  if (learned_variance) variances.push("learned");
  form.sampler.replaceChildren(...samplers.map((name) => new Option(name)));
  // The model chooses by the number of steps, unless somebody does.
  form.variance.replaceChildren(new Option("the model's", ""), ...variances.map((name) => new Option(name)));
  form.steps.max = schedule.T;
  showClasses(classes);
  showSheet(links.sheet);
  for (const name of ["sampler", "steps", "eta"]) form[name].value = defaults[name];
  showOptions();
}

/** Show the model's sheet of samples, if it has one. One that cannot be fetched is left out. */
async function showSheet(path) {
  sheet.hidden = true;
  URL.revokeObjectURL(sheet.src);
  if (!path) return;
  const png = await ask(path).then((answer) => answer.blob(), () => null);
  // another model may have been chosen in between
  if (!png || cards.get(form.model.value).links.sheet !== path) return;
  Object.assign(sheet, { src: URL.createObjectURL(png), alt: `samples of ${form.model.value}`, hidden: false });
}

/** Offer the model's classes, if it has any: one that is drawn for each image comes first. */
function showClasses(classes) {
  const labels = Array.from({ length: classes?.count ?? 0 }, (_, label) => new Option(classes.names?.[label] ?? label, label));
  form.label.replaceChildren(new Option("drawn", ""), ...labels);
  form.guidance.value = 1;
  show(".classes", Boolean(classes));
  show(".guided", (classes?.null ?? null) !== null);
}

/** Offer the labels of a job's images, and choose them. Those of a job without classes are null. */
function offerLabels(labels) {
  if (labels.includes(null)) return;
  form.label.add(new Option("as in that job", JSON.stringify(labels), false, true));
}

/** Have classes drawn where labels of a job are chosen, which are for another number of images. */
function dropLabels() {
  if (form.label.value.startsWith("[")) form.label.value = "";
}

/**
 * Show the sampler's own options only.
 */
function showOptions() {
  for (const sampler of ["ddpm", "ddim"]) show(`.${sampler}`, form.sampler.value === sampler);
}

/**
 * Show a field of the form, or hide it.
 *
 * Hidden ones are disabled, so that the browser does not check them. Otherwise nobody would see
 * why the form is not sent.
 */
function show(selector, isShown) {
  const label = form.querySelector(selector);
  label.hidden = label.control.disabled = !isShown;
}

/** Make the body of POST /v1/jobs from the form. */
function jobRequest() {
  const label = JSON.parse(form.label.value || "null"); // or a list, one for each image
  const number = (name) => (form[name].value === "" ? null : Number(form[name].value));
  return {
    ...Object.fromEntries(["model", "sampler", "priority"].map((name) => [name, form[name].value])),
    ...Object.fromEntries(["count", "steps", "seed", "start"].map((name) => [name, number(name)])),
    ...(form.sampler.value === "ddpm" && form.variance.value && { variance: form.variance.value }),
    ...(form.sampler.value === "ddim" && { eta: number("eta") }),
    ...(!form.label.disabled && { [Array.isArray(label) ? "labels" : "label"]: label }),
    ...(!form.guidance.disabled && { guidance: number("guidance") }),
  };
}

/** Follow up a request that has worked. */
function changed() {
  showProblem();
  wake();
}

/** Put a job's recipe into the form. The list of jobs lacks the labels of images that differ. */
async function again(job) {
  if (!cards.has(job.model)) throw new Problem(404, `${job.model} is no longer served.`);
  const differ = cards.get(job.model).classes && job.label === null;
  const { images } = differ && !job.images ? await json(job.links.self) : job;
  form.model.value = job.model;
  showCard();
  for (const name of ["sampler", "steps", "count", "seed", "start", "priority"]) form[name].value = job[name];
  for (const name of ["variance", "eta", "guidance"]) form[name].value = job[name] ?? form[name].value;
  form.label.value = job.label ?? "";
  if (differ) offerLabels(images.map(({ label }) => label));
  showOptions();
  form.scrollIntoView({ behavior: "smooth" });
  form.count.focus();
}

/** Show the newest jobs, in the list's order. Jobs that are shown already keep their elements. */
async function listJobs() {
  const page = await json(`v1/jobs?limit=${MOST_JOBS}`);
  const ids = new Set(page.jobs.map((job) => job.id));
  for (const [id, view] of views) {
    if (!ids.has(id)) {
      view.remove();
      views.delete(id);
    }
  }
  let place = jobs.firstElementChild;
  for (const job of page.jobs) {
    if (!views.has(job.id)) views.set(job.id, new JobView(job, { again, changed, failed: showProblem }));
    const { element } = views.get(job.id);
    if (element === place) place = place.nextElementSibling;
    else jobs.insertBefore(element, place);
  }
  await Promise.all(page.jobs.map((job) => views.get(job.id).follow(job)));
}

async function showWorkers() {
  const { workers } = await json("readyz");
  const rate = workers.reduce((sum, worker) => sum + worker.image_steps_per_s, 0);
  const count = `${workers.length} ${workers.length === 1 ? "worker" : "workers"}`;
  showService(`${count}, ${rate.toFixed(0)} image-steps per second`);
}

/** Wait until the time is over, or the user has done something. */
function pause(ms) {
  return new Promise((resolve) => {
    wake = resolve;
    setTimeout(resolve, ms);
  });
}

/** Keep the page up to date, for ever. While the service is away, is full or wants a key, say so. */
async function follow() {
  for (;;) {
    let busy = false;
    try {
      if (!cards.size) await listModels();
      await listJobs();
      keyForm.hidden = true;
      busy = [...views.values()].some((view) => !view.isOver);
      await showWorkers();
    } catch (problem) {
      if (!(problem instanceof Problem)) throw problem;
      keyForm.hidden &&= problem.status !== 401;
      showService(problem.message);
    }
    do await pause(busy ? BUSY_MS : QUIET_MS);
    while (document.hidden);
  }
}

form.model.addEventListener("change", showCard);
form.sampler.addEventListener("change", showOptions);
form.count.addEventListener("change", dropLabels);
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true; // a double click is one job
  await ask("v1/jobs", { method: "POST", body: jobRequest() }).then(() => showProblem(), showProblem);
  button.disabled = false;
  wake();
});
keyForm.addEventListener("submit", (event) => {
  event.preventDefault();
  const key = keyForm.key.value.trim();
  keyForm.reset();
  if (!SENDABLE.test(key)) {
    const detail =
      "The key holds a space or a character that no key has, perhaps unseen; paste it as it was given.";
    return showProblem(new Problem(0, detail));
  }
  useKey(key);
  changed();
});

showPreviews();
follow();
