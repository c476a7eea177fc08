// Loaded into every tested page: questions that tests ask of it.

addEventListener("securitypolicyviolation", (event) => console.error(`CSP: ${event.violatedDirective}`));

window.probes = {
  /** Elements that can be used but have no name for a screen reader. */
  unnamed: () => [...document.querySelectorAll("button, a, input, textarea")]
    .filter((one) => !(one.ariaLabel || one.textContent.trim() || one.title || one.labels?.length))
    .map((one) => one.outerHTML),

  /** The rightmost edge of what doesn't scroll by itself. */
  rightEdge: () => Math.max(...[...document.querySelectorAll("*")]
    .filter((one) => !one.closest("pre, .table, #sidebar")).map((one) => one.getBoundingClientRect().right)),

  scrollsSideways: () => [document.documentElement, document.querySelector("main")]
    .some((one) => one.scrollWidth > one.clientWidth),

  /** Texts with less contrast than WCAG AA asks for, as [text, contrast]. */
  poorContrast() {
    const parse = (colour) => colour.match(/[\d.]+/g).map(Number);
    const linear = (value) => (value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
    const luminance = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
    const isOpaque = (element) => (parse(getComputedStyle(element).backgroundColor)[3] ?? 1) === 1;
    const ground = (element) => {
      while (!isOpaque(element)) element = element.parentElement;
      return parse(getComputedStyle(element).backgroundColor);
    };
    const found = [];
    for (const element of document.querySelectorAll("body *")) {
      const says = [...element.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
      if (!says || !element.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
      const colours = [parse(getComputedStyle(element).color), ground(element)];
      const [bright, dark] = colours.map(luminance).sort((a, b) => b - a);
      const contrast = (bright + 0.05) / (dark + 0.05);
      if (contrast < 4.5) found.push([element.textContent, contrast]);
    }
    return found;
  },

  /** Markdown as HTML, with what matters of it: no classes, no buttons, no addresses. */
  async markdown(text) {
    const { blocks, renderBlock } = await import("/page/markdown.js");
    const box = document.createElement("div");
    box.append(...blocks(text).map((block) => renderBlock(block)));
    for (const bar of box.querySelectorAll(".bar")) bar.remove();
    for (const wrap of box.querySelectorAll("div")) wrap.replaceWith(...wrap.childNodes);
    for (const one of box.querySelectorAll("*"))
      for (const name of one.getAttributeNames()) if (name !== "start") one.removeAttribute(name);
    return box.innerHTML.replaceAll("&gt;", ">");
  },

  async markdownSeconds(text) {
    const { blocks, renderBlock } = await import("/page/markdown.js");
    const start = performance.now();
    blocks(text).map((block) => renderBlock(block));
    return (performance.now() - start) / 1000;
  },

  /** Put entries beside a good conversation that are none, and settings of the wrong kinds. */
  damageStorage() {
    const prefix = "nanochat.conversation.";
    const good = JSON.parse(Object.entries(localStorage).find(([key]) => key.startsWith(prefix))[1]);
    const child = (parts, children = []) => ({ role: "user", parts, children, chosen: 0 });
    const answer = { ...child([]), role: "assistant", tokens: [null] };
    const damaged = {
      broken: "{{{", empty: "", number: "7", nothing: "null", list: "[]",
      stranger: JSON.stringify({ ...good, id: "other" }),
      chosen: JSON.stringify({ ...good, id: "chosen", chosen: 5 }),
      parts: JSON.stringify({ ...good, id: "parts", children: [child([{ type: "text", text: {} }])] }),
      tokens: JSON.stringify({ ...good, id: "tokens", children: [child([], [answer])] }),
    };
    for (const [name, text] of Object.entries(damaged)) localStorage[prefix + name] = text;
    localStorage["nanochat.settings"] = '{"temperature": "hot", "theme": 7, "top_k": [], "max_tokens": 99}';
  },

  /** Fill the storage with 30 conversations, "number 1" the latest. */
  fillStorage() {
    for (let age = 1; age <= 30; age++) {
      const tokens = [{ id: 1, text: "x".repeat(20_000), logprob: -1, top: [] }];
      const parts = [{ type: "text", text: "y".repeat(90_000) }];
      const answer = { role: "assistant", parts, tokens, children: [], chosen: 0 };
      const question = { role: "user", parts: [{ type: "text", text: `number ${age}` }], children: [answer], chosen: 0 };
      const one = { id: `old${age}`, system: "", updated: 1000 - age, children: [question], chosen: 0 };
      localStorage[`nanochat.conversation.old${age}`] = JSON.stringify(one);
    }
  },
};
