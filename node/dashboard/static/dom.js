// Building elements. Text is only ever set as text: nothing that a client sent is read as HTML.

export const $ = (id) => document.getElementById(id);

/** An element with properties (`class`, `text`, `data-…`, `aria-…`, `on…` and plain properties) and children. */
export function h(tag, props = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") element.className = value;
    else if (name === "text") element.textContent = value;
    else if (name.includes("-") || name === "role" || name === "for") element.setAttribute(name, value === true ? "" : value);
    else element[name] = value;
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

/** Make `parent` hold what `children` are like, changing as little as possible: focus and selection stay where they are. */
export function fill(parent, ...children) {
  const fresh = document.createElement(parent.tagName);
  fresh.append(...children.flat().filter((child) => child !== null && child !== undefined));
  likeChildren(parent, fresh);
}

function likeChildren(old, fresh) {
  const wanted = [...fresh.childNodes];
  while (old.childNodes.length > wanted.length) old.lastChild.remove();
  wanted.forEach((node, i) => {
    const there = old.childNodes[i];
    if (there === undefined) old.append(node);
    else if (there.nodeName !== node.nodeName) there.replaceWith(node);
    else if (node.nodeType === Node.TEXT_NODE) {
      if (there.data !== node.data) there.data = node.data;
    } else {
      likeElement(there, node);
      likeChildren(there, node);
    }
  });
}

function likeElement(old, fresh) {
  for (const { name } of [...old.attributes]) if (name !== "style" && !fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (name !== "style" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  // Not as an attribute: the page's own policy forbids that.
  if (old.style.cssText !== fresh.style.cssText) old.style.cssText = fresh.style.cssText;
  old.onclick = fresh.onclick;
}
