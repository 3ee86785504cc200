// The page: the picked model, its images and, where they can change, its labels.

import { offerCamera } from "./camera.js";
import { find } from "./dom.js";
import { takeImages } from "./images.js";
import { offerForgetting } from "./keys.js";
import { Labels } from "./labels.js";
import { Models } from "./models.js";
import { Results } from "./results.js";
import { Tabs } from "./tabs.js";

const tabs = new Tabs(["images", "labels"]);
const results = new Results();
const labels = new Labels((revision, isInEffect) => results.usePublished(revision, isInEffect));

function use(model) {
  results.useModel(model);
  find("tabs").hidden = !model.hasLabelMap;
  if (!model.hasLabelMap) tabs.show("images");
  labels.useModel(model.hasLabelMap ? model : null);
}

function take(files) {
  tabs.show("images");
  results.add(files);
}

takeImages(take);
offerCamera((file) => take([file]));
offerForgetting();
new Models(use, (isPicking) => results.hold(isPicking)).refresh();
