// The token view: how likely the model found each token, and what it might have said instead.

import { h, sync } from "./dom.js";

const LEVELS = [0.9, 0.5, 0.2, 0.05, 0]; // the least probability of each shade, from sure to surprising
const probability = (token) => Math.exp(token.logprob);

/** A probability for reading: "97.1 %", "0.40 %". */
function percent(value) {
  const share = 100 * value;
  return share < 0.01 ? "<0.01 %" : `${share.toFixed(share >= 99.95 ? 0 : share >= 10 ? 1 : 2)} %`;
}

/** A token's text with signs for what can't be seen. */
const visibly = (text) => text.replaceAll("\n", "↵").replaceAll("\t", "⇥").replaceAll(" ", "␣") || "∅";

/** Show an answer's tokens in `container`; `onPick(index, token)` is called where the user wants another one. */
export function showTokens(container, tokens, onPick) {
  const item = (token, index) => ({ key: token, build: () => tokenElement(container, token, index, onPick) });
  sync(container, tokens.map(item));
  if (!container.querySelector("[tabindex='0']")) container.firstElementChild.tabIndex = 0;
}

function tokenElement(container, token, index, onPick) {
  const isGiven = token.logprob == null;
  const chance = isGiven ? "not the model’s choice" : percent(probability(token));
  const shade = isGiven ? "given" : `level-${LEVELS.findIndex((least) => probability(token) >= least)}`;
  const open = () => showAlternatives(element, token, chance, (other) => onPick(index, other));
  const onkeydown = (event) => {
    const places = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: container.children.length - 1 };
    if (event.key === "Enter" || event.key === " ") open();
    else if (event.key in places) moveFocus(element, container.children[places[event.key]]);
    else return;
    event.preventDefault();
  };
  const element = h("span", {
    class: `token ${shade}${token.control ? " control" : ""}${token.picked ? " picked" : ""}`, title: chance,
    role: "button", tabindex: -1, "aria-haspopup": "dialog", "aria-label": `${visibly(token.text)}, ${chance}`,
    onclick: open, onkeydown,
  }, token.text.replaceAll("\n", "↵\n") || "∅");
  return element;
}

// All tokens are one stop of the Tab key; the arrows move among them.
function moveFocus(from, to) {
  if (!to) return;
  from.tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
}

function showAlternatives(element, token, chance, onPick) {
  const popover = document.getElementById("alternatives");
  const others = [...(token.top ?? [])];
  if (token.logprob != null && !others.some(({ id }) => id === token.id)) others.push(token);
  const rest = 1 - others.reduce((sum, other) => sum + probability(other), 0);
  const row = (other) => {
    const isChosen = other.id === token.id;
    const [text, share] = [visibly(other.text), percent(probability(other))];
    const onclick = () => (popover.hidePopover(), onPick(other));
    return h("button", { type: "button", disabled: isChosen, onclick, "aria-label": `${text}, ${share}` },
      bar(probability(other)), h("code", {}, text), h("span", {}, isChosen ? `✓ ${share}` : share));
  };
  const hint = others.length
    ? "Pick another token, and the answer goes on from there."
    : "A tool’s result, or text that was given.";
  popover.replaceChildren(
    h("h2", { id: "alternatives-title" }, h("code", {}, visibly(token.text)), ` ${chance}`),
    h("p", {}, hint),
    h("ul", {}, others.map((other) => h("li", {}, row(other))), others.length > 0 && rest > 0.0001
      && h("li", { class: "rest" }, bar(rest), h("span", {}, "all others"), h("span", {}, percent(rest)))),
  );
  popover.showPopover();
  place(popover, element.getClientRects()[0]);
  popover.querySelector("button:enabled")?.focus();
}

const bar = (share) => {
  const element = h("i");
  element.style.width = `${100 * share}%`;
  return element;
};

/** Put a popover below what it is about, or above where there is no room, and within the window. */
function place(popover, { left, top, bottom }) {
  const { offsetWidth: width, offsetHeight: height } = popover;
  const hasRoom = bottom + height + 14 <= innerHeight;
  popover.style.left = `${Math.max(8, Math.min(left, innerWidth - width - 8))}px`;
  popover.style.top = `${Math.max(8, hasRoom ? bottom + 6 : top - height - 6)}px`;
}
