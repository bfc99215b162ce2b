// The images of a job as tiles: empty, then with previews, then with the finished image.
// Only tiles in sight are fetched.

import { ask, save } from "./api.js";

// Of the six connections that a browser has. A worker may take a step's time for each preview.
const PREVIEWS_AT_ONCE = 4;
const PREVIEW_EVERY_MS = 600;
// 64 images that are fetched again are then a third of the requests that a key may send.
const REFUSED_MS = 2000;
const GONE = new Set([404, 410]);

const inSight = new Set();
const sight = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    inSight[isIntersecting ? "add" : "delete"](target.tile);
    target.tile.load();
  }
});

export class Tile {
  #image = document.createElement("img");
  #asked = false;
  url = null; // of the finished image
  label = null; // of its class
  isGone = false; // finished once, but cannot be fetched any more
  wantsPreview = false;

  constructor(job, index) {
    this.job = job;
    this.index = index;
    this.element = Object.assign(document.createElement("button"), { className: "tile", disabled: true, tile: this });
    this.#image.alt = `image ${index}`;
    this.element.append(this.#image);
    this.element.addEventListener("click", () => enlarge(this));
    sight.observe(this.element);
  }

  get src() {
    return this.#image.src;
  }

  /** Show the image as the job's status has it. */
  update({ state, url, label }) {
    this.label = label;
    this.wantsPreview = state === "running";
    if (state === "finished") this.url = url;
    if (state === "expired") this.#expire();
    this.load();
  }

  async load() {
    if (!this.url || this.#asked || !inSight.has(this)) return;
    this.#asked = true;
    try {
      this.#show(await (await ask(this.url)).blob());
      this.element.disabled = false;
      this.element.classList.add("finished");
    } catch (problem) {
      if (GONE.has(problem.status)) this.#expire();
      else setTimeout(() => (this.#asked = false), REFUSED_MS); // then showPreviews() asks again
    }
  }

  async preview() {
    try {
      const png = await (await ask(`v1/jobs/${this.job.id}/images/${this.index}/preview`)).blob();
      if (!this.element.classList.contains("finished")) this.#show(png);
    } catch {
      // It waits, or is finished, or its job is gone: the next status says which.
    }
  }

  remove() {
    sight.unobserve(this.element);
    inSight.delete(this);
    URL.revokeObjectURL(this.src);
  }

  /** Say that the image has expired. One that is shown already stays. */
  #expire() {
    this.isGone = true;
    if (this.element.classList.contains("finished")) return;
    this.element.textContent = "expired";
    this.element.ariaLabel = `image ${this.index} has expired`;
  }

  #show(png) {
    URL.revokeObjectURL(this.src);
    this.#image.src = URL.createObjectURL(png);
  }
}

/**
 * Load the tiles in sight, for ever.
 *
 * Finished images that were refused are fetched again.
 * Previews of running images are fetched a few at a time, each in its turn.
 */
export async function showPreviews() {
  for (;;) {
    // Also of jobs that have ended, whose status is not fetched any more.
    if (!document.hidden) for (const tile of inSight) tile.load();
    const running = [...inSight].filter((tile) => tile.wantsPreview && !document.hidden);
    for (let first = 0; first < running.length; first += PREVIEWS_AT_ONCE) {
      await Promise.all(running.slice(first, first + PREVIEWS_AT_ONCE).map((tile) => tile.wantsPreview && tile.preview()));
    }
    await new Promise((resolve) => setTimeout(resolve, PREVIEW_EVERY_MS));
  }
}

function enlarge({ job, index, label, src, url }) {
  const dialog = document.querySelector("#picture");
  const ofClass = label === null ? "" : `, class ${label}`;
  const caption = `image ${index} of seed ${job.seed}${ofClass}: ${job.sampler}, ${job.steps} steps`;
  Object.assign(dialog.querySelector("img"), { src, alt: caption });
  dialog.querySelector("p").textContent = caption;
  const failed = (problem) => (dialog.querySelector("p").textContent = problem.message);
  dialog.querySelector(".save").onclick = () => save(url, `${job.id}-${index}.png`).catch(failed);
  dialog.showModal();
}
