// Elements without HTML strings: whatever a text contains, it stays text.

/** Return a new element; `on…` attributes are listeners, false and null ones are left out, strings become text. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== false && value != null) element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

/** Return a button of one icon; style.css has the icons. */
export const iconButton = (icon, label, onclick, more = {}) => h("button",
  { type: "button", class: "icon", "data-icon": icon, "aria-label": label, title: label, onclick, ...more });

/**
 * Make the children of `container` those of `items`, a list of `{key, build}`. A child whose key is the same stays, so
 * that what is being read, selected or focused doesn't go away while an answer grows.
 */
export function sync(container, items) {
  items.forEach(({ key, build }, index) => {
    const old = container.children[index];
    if (old && old.syncKey === key) return;
    const element = Object.assign(build(), { syncKey: key });
    if (old) old.replaceWith(element);
    else container.append(element);
  });
  while (container.children.length > items.length) container.lastChild.remove();
}

/** Put `text` on the clipboard, and say so on the button that asked. */
export async function copy(text, button) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = h("textarea", { class: "unseen" }, text); // without https there is no clipboard API
    document.body.append(area);
    area.select();
    document.execCommand("copy");
    area.remove();
  }
  announce("Copied.");
  button.dataset.icon = "done";
  setTimeout(() => (button.dataset.icon = "copy"), 1500);
}

/** Tell people who listen instead of looking. */
export const announce = (text) => (document.getElementById("status").textContent = text);

/** Whether this is a phone or a tablet: Enter begins a new line there, as usual. */
export const isTouch = () => matchMedia("(pointer: coarse)").matches;

/** Make a field as high as its text. */
export function grow(area) {
  area.style.height = "auto";
  area.style.height = `${area.scrollHeight}px`;
}
