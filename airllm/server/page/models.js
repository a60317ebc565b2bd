// The menu of models: which there are, which one a conversation has, and which are loaded.

import { load, models } from "./api.js";
import { element } from "./markdown.js";

export class ModelMenu {
  /** onState(text): shows that a model is being loaded, or with "" that it no longer is. */
  constructor(select, onState) {
    this.select = select;
    this.onState = onState;
    this.all = []; // {id, state}
  }

  get chosen() {
    return this.select.value;
  }

  get areSeveral() {
    return this.all.length > 1;
  }

  /** Ask the server again. `wanted`: the model of the conversation that is shown. */
  async refresh(wanted) {
    this.all = await models();
    this.select.replaceChildren(
      ...this.all.map(({ id, state }) =>
        element("option", { value: id }, state === "loaded" || !this.areSeveral ? id : `${id} (${state})`),
      ),
    );
    this.select.hidden = !this.areSeveral;
    this.show(wanted);
  }

  /** The model of a conversation; if it has none yet, or one that has gone, the one that is loaded. */
  show(wanted) {
    const own = this.all.find(({ id }) => id === wanted);
    const shown = own ?? this.all.find(({ state }) => state === "loaded") ?? this.all[0];
    this.select.value = shown?.id ?? "";
  }

  /** What to say while nothing of an answer has come. */
  waiting() {
    const found = this.all.find(({ id }) => id === this.chosen);
    return this.areSeveral && found?.state !== "loaded" ? `Loading ${this.chosen}` : "Waiting";
  }

  /** Load what is chosen. Throws the server's error. */
  async load() {
    this.onState(`Loading ${this.chosen}`);
    try {
      await load(this.chosen);
    } finally {
      this.onState("");
    }
  }
}
