// The images of a job as tiles: empty, then what they look like so far, then the picture. Only what is in sight is asked for.

import { ask, save } from "./api.js";

const PREVIEWS_AT_ONCE = 4; // of the six connections that a browser has; a worker may take a step's time over each
const PREVIEW_EVERY_MS = 600;
const REFUSED_MS = 2000; // 64 pictures that are asked for again are then a third of what a key may ask
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
  url = null; // where the finished picture is
  isGone = false; // it was finished, and cannot be fetched any more
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

  /** As the job's status has it. */
  update({ state, url }) {
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
      const png = await (await ask(`/v1/jobs/${this.job.id}/images/${this.index}/preview`)).blob();
      if (!this.element.classList.contains("finished")) this.#show(png);
    } catch {
      // it waits, or is finished, or its job is gone: the next status says which
    }
  }

  remove() {
    sight.unobserve(this.element);
    inSight.delete(this);
    URL.revokeObjectURL(this.src);
  }

  /** A picture that is shown already stays. */
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

/** For ever, in sight: finished pictures that were refused; previews of running images, a few at once, each in its turn. */
export async function showPreviews() {
  for (;;) {
    if (!document.hidden) for (const tile of inSight) tile.load(); // a job that has ended is not asked for its status again
    const running = [...inSight].filter((tile) => tile.wantsPreview && !document.hidden);
    for (let first = 0; first < running.length; first += PREVIEWS_AT_ONCE) {
      await Promise.all(running.slice(first, first + PREVIEWS_AT_ONCE).map((tile) => tile.wantsPreview && tile.preview()));
    }
    await new Promise((resolve) => setTimeout(resolve, PREVIEW_EVERY_MS));
  }
}

function enlarge({ job, index, src, url }) {
  const dialog = document.querySelector("#picture");
  const said = `image ${index} of seed ${job.seed}: ${job.sampler}, ${job.steps} steps`;
  Object.assign(dialog.querySelector("img"), { src, alt: said });
  dialog.querySelector("p").textContent = said;
  const failed = (problem) => (dialog.querySelector("p").textContent = problem.message);
  dialog.querySelector(".save").onclick = () => save(url, `${job.id}-${index}.png`).catch(failed);
  dialog.showModal();
}
