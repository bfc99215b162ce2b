// The page: a form that posts jobs, and the newest jobs, looked at twice a second while one of them is under way.

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
const jobs = document.querySelector("#jobs");
const views = new Map();
let cards = new Map();
let wake = () => {};

/** What became of something that the user did; with nothing, that all is well. */
function say(problem) {
  document.querySelector("#problem").textContent = problem?.message ?? "";
}

/** How the service is. What is said already is not said again, as it would be read out. */
function sayOfService(text) {
  if (service.textContent !== text) service.textContent = text;
}

async function listModels() {
  const { models, default: usual } = await json("/v1/models");
  cards = new Map(models.map((card) => [card.name, card]));
  form.model.replaceChildren(...models.map(({ name }) => new Option(name, name, name === usual, name === usual)));
  showCard();
}

/** What a model's card says, as the form's choices. */
function showCard() {
  const { samplers, defaults, schedule, residual_variance } = cards.get(form.model.value);
  const variances = ["fixed_small", "fixed_large", ...(residual_variance ? ["analytic"] : [])];
  form.sampler.replaceChildren(...samplers.map((name) => new Option(name)));
  form.variance.replaceChildren(...variances.map((name) => new Option(name)));
  form.steps.max = schedule.T;
  for (const name of ["sampler", "steps", "variance", "eta"]) form[name].value = defaults[name];
  showOptions();
}

/** A sampler's own options, and no other's: what is hidden is not checked, or nobody would see why the form is not sent. */
function showOptions() {
  for (const sampler of ["ddpm", "ddim"]) {
    const label = form.querySelector(`.${sampler}`);
    label.hidden = label.control.disabled = form.sampler.value !== sampler;
  }
}

/** The body of POST /v1/jobs. */
function wanted() {
  const number = (name) => (form[name].value === "" ? null : Number(form[name].value));
  return {
    ...Object.fromEntries(["model", "sampler", "priority"].map((name) => [name, form[name].value])),
    ...Object.fromEntries(["count", "steps", "seed", "start"].map((name) => [name, number(name)])),
    ...(form.sampler.value === "ddpm" && { variance: form.variance.value }),
    ...(form.sampler.value === "ddim" && { eta: number("eta") }),
  };
}

/** Something was done, and it worked. */
function changed() {
  say();
  wake();
}

/** Puts a job's recipe into the form. */
function again(job) {
  if (!cards.has(job.model)) return say(new Problem(404, `${job.model} is no longer served.`));
  form.model.value = job.model;
  showCard();
  for (const name of ["sampler", "steps", "count", "seed", "start", "priority"]) form[name].value = job[name];
  for (const name of ["variance", "eta"]) form[name].value = job[name] ?? form[name].value;
  showOptions();
  form.scrollIntoView({ behavior: "smooth" });
  form.count.focus();
}

/** The newest jobs, in the list's order; those that are there stay the same elements. */
async function listJobs() {
  const page = await json(`/v1/jobs?limit=${MOST_JOBS}`);
  const ids = new Set(page.jobs.map((job) => job.id));
  for (const [id, view] of views) {
    if (!ids.has(id)) {
      view.remove();
      views.delete(id);
    }
  }
  let place = jobs.firstElementChild;
  for (const job of page.jobs) {
    if (!views.has(job.id)) views.set(job.id, new JobView(job, { again, changed, failed: say }));
    const { element } = views.get(job.id);
    if (element === place) place = place.nextElementSibling;
    else jobs.insertBefore(element, place);
  }
  await Promise.all(page.jobs.map((job) => views.get(job.id).follow(job)));
}

async function showWorkers() {
  const { workers } = await json("/readyz");
  const rate = workers.reduce((sum, worker) => sum + worker.image_steps_per_s, 0);
  const count = `${workers.length} ${workers.length === 1 ? "worker" : "workers"}`;
  sayOfService(`${count}, ${rate.toFixed(0)} image-steps per second`);
}

/** Until the time is over, or something has been done that shows. */
function pause(ms) {
  return new Promise((resolve) => {
    wake = resolve;
    setTimeout(resolve, ms);
  });
}

/** For ever. While the service is away, is full or wants a key, the page says so and asks again. */
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
      sayOfService(problem.message);
    }
    do await pause(busy ? BUSY_MS : QUIET_MS);
    while (document.hidden);
  }
}

form.model.addEventListener("change", showCard);
form.sampler.addEventListener("change", showOptions);
form.addEventListener("submit", async (event) => {
  event.preventDefault();
  const button = form.querySelector("button");
  button.disabled = true; // so that a double click is one job
  await ask("/v1/jobs", { method: "POST", body: wanted() }).then(() => say(), say);
  button.disabled = false;
  wake();
});
keyForm.addEventListener("submit", (event) => {
  event.preventDefault();
  const key = keyForm.key.value.trim();
  keyForm.reset();
  if (!SENDABLE.test(key)) {
    return say(new Problem(0, "The key holds a space or a character that no key has, perhaps unseen; paste it as it was given."));
  }
  useKey(key);
  changed();
});

showPreviews();
follow();
