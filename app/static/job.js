// One job: its recipe, its progress, its images, and the buttons for it.

import { ask, json, save } from "./api.js";
import { Tile } from "./images.js";

const MOST_TILES = 64;
const FINAL = new Set(["finished", "failed", "cancelled"]);

export class JobView {
  #job;
  #tiles = new Map();
  isOver = false; // it has ended, and its last status is shown

  /**
   * `again(job)` puts its recipe into the form, `changed()` follows each request that has worked,
   * and `failed(problem)` each that was refused.
   */
  constructor(job, { again, changed, failed }) {
    this.#job = job;
    this.element = document.querySelector("#job").content.firstElementChild.cloneNode(true);
    this.element.id = `job-${job.id}`;
    this.#text("h2", `${job.count.toLocaleString("en")} × ${job.model}`);
    this.#text(".recipe", recipe(job));
    this.#name();
    for (let index = job.start; index < job.start + Math.min(job.count, MOST_TILES); index++) {
      const tile = new Tile(job, index);
      this.#tiles.set(index, tile);
      this.#part(".images").append(tile.element);
    }
    const does = (name, action) =>
      this.#part(name).addEventListener("click", () => Promise.resolve(action()).then(changed, failed));
    does(".archive", () => save(job.links.archive, `${job.id}.zip`));
    does(".cancel", () => ask(job.links.cancel, { method: "POST" }));
    does(".delete", () => this.#mayDelete() && ask(job.links.self, { method: "DELETE" }));
    does(".again", () => again(this.#job));
    this.update(job);
  }

  /** Show the job as the list has it, and then, unless it is over, as its own status has it. */
  async follow(summary) {
    this.update(summary);
    if (this.isOver) return;
    const status = await json(summary.links.self).catch((problem) => {
      if (problem.status !== 404) throw problem; // deleted since: the next list lacks it
    });
    if (status) this.update(status);
  }

  update(job) {
    const ended = FINAL.has(job.state);
    this.#job = { queue: this.#job.queue, images: this.#job.images, ...job };
    this.isOver ||= ended && "images" in job;
    this.element.className = job.state;
    this.#text(".state", job.state);
    this.#text(".told", progressText(this.#job));
    this.#part("progress").value = job.progress.fraction;
    this.#part("progress").hidden = ended;
    this.#part(".cancel").hidden = ended;
    for (const image of job.images ?? []) this.#tiles.get(image.index)?.update(image);
    this.#part(".archive").hidden = !ended || !this.#hasImages();
  }

  remove() {
    for (const tile of this.#tiles.values()) tile.remove();
    this.element.remove();
  }

  /**
   * Label the buttons for those who hear the page: with the job's title, and with its recipe,
   * which tells it from other jobs of that title.
   */
  #name() {
    const { id } = this.element;
    const [title, recipe] = [this.#part("h2"), this.#part(".recipe")];
    title.id = `${id}-title`;
    recipe.id = `${id}-recipe`;
    this.element.setAttribute("aria-labelledby", title.id);
    for (const button of this.element.querySelectorAll(".actions button")) {
      button.id = `${id}-${button.className}`;
      button.setAttribute("aria-labelledby", `${button.id} ${title.id}`);
      button.setAttribute("aria-describedby", recipe.id);
    }
  }

  #mayDelete() {
    const { images, progress } = this.#job;
    const hasImages = images ? this.#hasImages() : progress.images_done > 0;
    return !hasImages || confirm(`Delete ${this.#part("h2").textContent} and its pictures?`);
  }

  /** Whether images can be fetched, as far as is known. */
  #hasImages() {
    return this.#job.images?.some(({ state, index }) => state === "finished" && !this.#tiles.get(index)?.isGone);
  }

  #part(selector) {
    return this.element.querySelector(selector);
  }

  #text(selector, text) {
    const part = this.#part(selector);
    if (part.textContent !== text) part.textContent = text;
  }
}

function recipe({ sampler, variance, eta, steps, label, guidance, seed, start, count, priority }) {
  const option = variance ?? (eta === null ? null : `eta ${eta}`);
  const few = count > MOST_TILES ? `the first ${MOST_TILES} of ${count.toLocaleString("en")} are shown` : null;
  const from = start ? `from image ${start} on` : null;
  const ofClass = label === null ? null : `class ${label}`;
  const guided = guidance === null || guidance === 1 ? null : `guidance ${guidance}`;
  const sampled = [option ? `${sampler} (${option})` : sampler, `${steps} steps`];
  const parts = [...sampled, ofClass, guided, `seed ${seed}`, from, priority, few];
  return parts.filter(Boolean).join(", ");
}

function progressText({ state, progress, queue, error, count, started_at, finished_at }) {
  const done = `${progress.images_done} of ${count} images`;
  switch (state) {
    case "queued":
      if (!queue) return "";
      return `${queue.position} jobs come before it${queue.eta_s === null ? "" : `; done in about ${queue.eta_s.toFixed(0)} s`}`;
    case "running":
      return `${(100 * progress.fraction).toFixed(0)} %, ${done}`; // images may run one batch after the other
    case "finished":
      return `${done} in ${((new Date(finished_at) - new Date(started_at)) / 1000).toFixed(1)} s`;
    case "failed":
      return error.message;
    default:
      return `${done} were finished`;
  }
}
