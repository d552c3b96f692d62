// The models of the registry as every part of the page needs them.

import { askJson, part } from "./api.js";

/** All models; asked anew each time. */
export const listModels = () => askJson("v1/models");

/** Load a version beside the one that answers; needs a token with the role promote. */
export const loadVersion = (model, version) =>
  askJson(`v2/repository/models/${part(model)}/load`, {
    method: "POST",
    json: { parameters: { version: String(version) } },
  });

export const servedModels = (models) => models.filter((model) => model.served);

/** Class names of the version that answers for a model, without background. */
export async function classesOf(model) {
  const details = await askJson(`v1/models/${part(model.name)}/versions/${model.default}`);
  return details.class_set.filter((entry) => entry.id !== 0);
}

/** Words for a version in a list. */
export function describe(model, version) {
  const marks = [...version.aliases];
  if (version.version === model.default) marks.push("answers now");
  else if (!version.loaded) marks.push("not loaded");
  return `${version.version}${marks.length ? ` (${marks.join(", ")})` : ""}`;
}
