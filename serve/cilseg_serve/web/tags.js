// A tag list in the making: which class is present, absent or unknown in which image, with undo. No page in here.

export const STATES = ["unknown", "present", "absent"];

/** Files are named below the image folder `root`, whatever folder the saved list named. */
export class TagList {
  constructor(root) {
    this.root = root;
    this.classes = []; // new classes: {name, color?}
    this.images = new Map(); // file -> Map(class -> "present" | "absent"); an image in it was looked at
    this.past = [];
    this.saved = true;
  }

  /** Read a list as `GET v1/tags/NAME` gives it; what "untagged" means is written out. */
  static read(document) {
    const [root, ...folders] = document.image_root.split("/");
    const list = new TagList(root);
    const prefix = folders.length ? `${folders.join("/")}/` : "";
    list.classes = document.classes ?? [];
    for (const row of document.images) {
      const tags = new Map();
      if ((document.untagged ?? "absent") === "absent") for (const { name } of list.classes) tags.set(name, "absent");
      for (const name of row.absent ?? []) tags.set(name, "absent");
      for (const name of row.present ?? []) tags.set(name, "present");
      list.images.set(prefix + row.file, tags);
    }
    return list;
  }

  /** The list in the normal form: every state is written out, so what is not named is unknown. */
  toDocument() {
    const of = (tags, state) => [...tags].filter(([, value]) => value === state).map(([name]) => name);
    const images = [...this.images]
      .filter(([, tags]) => tags.size)
      .sort(([a], [b]) => (a < b ? -1 : 1))
      .map(([file, tags]) => ({ file, present: of(tags, "present"), absent: of(tags, "absent") }));
    return { schema: "cilseg.tags/1", image_root: this.root, classes: this.classes, images, untagged: "unknown" };
  }

  state(file, name) {
    return this.images.get(file)?.get(name) ?? "unknown";
  }

  isTagged(file) {
    return (this.images.get(file)?.size ?? 0) > 0;
  }

  /** Set the state of classes, {name: state}, in one step that can be undone. */
  set(file, changes) {
    this.#remember({ file, tags: this.images.get(file) });
    const tags = new Map(this.images.get(file));
    for (const [name, state] of Object.entries(changes)) {
      if (state === "unknown") tags.delete(name);
      else tags.set(name, state);
    }
    if (tags.size) this.images.set(file, tags);
    else this.images.delete(file);
  }

  addClass(name) {
    this.#remember({ classes: this.classes });
    this.classes = [...this.classes, { name }];
  }

  /** Take a new class out, with its tags. */
  removeClass(name) {
    this.#remember({ classes: this.classes, images: this.images });
    this.classes = this.classes.filter((entry) => entry.name !== name);
    const kept = [...this.images].map(([file, tags]) => [file, new Map([...tags].filter(([tag]) => tag !== name))]);
    this.images = new Map(kept.filter(([, tags]) => tags.size));
  }

  /** Take the last step back; returns the file it concerned, "" for a class, null where there is none. */
  undo() {
    const step = this.past.pop();
    if (!step) return null;
    this.saved = false;
    if (step.classes) this.classes = step.classes;
    if (step.images) this.images = step.images;
    if (step.file === undefined) return "";
    if (step.tags) this.images.set(step.file, step.tags);
    else this.images.delete(step.file);
    return step.file;
  }

  count(name, state) {
    let found = 0;
    for (const tags of this.images.values()) found += tags.get(name) === state;
    return found;
  }

  /** What keeps the list from being learned from, or would help: one sentence each. The update asks for the same. */
  advice() {
    const lines = [];
    for (const { name } of this.classes) {
      const [present, absent] = [this.count(name, "present"), this.count(name, "absent")];
      if (!present) lines.push(`Tag images that show ${name}: none is tagged present.`);
      if (absent < Math.max(1, present)) {
        const wanted = Math.max(1, present) - absent;
        const images = wanted === 1 ? "One more image" : `About ${wanted} more images`;
        const need = absent ? "would help" : wanted === 1 ? "is needed" : "are needed";
        lines.push(`${images} without ${name} (tagged absent) ${need}.`);
      }
    }
    if (!this.classes.length) {
      lines.push("Add the class that the model has to learn. Without one, the tags only refine classes that it knows.");
    }
    return lines;
  }

  #remember(step) {
    this.past.push(step);
    this.saved = false;
  }
}
