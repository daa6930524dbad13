import { afterEach, expect, it } from "vitest";
import { directionOf, t, use } from "./i18n";

afterEach(() => use({}));

it("says a text in the reader's language, and in English what is not translated", () => {
  expect(t("{vms} selected", { vms: "2 VMs" })).toBe("2 VMs selected");
  use({ "{vms} selected": "{vms} ausgewählt", Close: "" });
  expect(t("{vms} selected", { vms: "2 VMs" })).toBe("2 VMs ausgewählt");
  expect([t("Close"), t("Cancel")]).toEqual(["Close", "Cancel"]);
});

it("leaves a value that looks like a place as it is", () => {
  expect(t("{name} is {state}", { name: "{state}", state: "on" })).toBe("{state} is on");
  expect(t("{name} {missing}", { name: "a" })).toBe("a {missing}");
});

it("knows where the lines of a language begin", () => {
  expect(["ar", "he", "en", "de"].map(directionOf)).toEqual(["rtl", "rtl", "ltr", "ltr"]);
});
