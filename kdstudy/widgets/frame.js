// What a frame around widgets does in the page.
function render({ el }) {
  const attach = (tries) => {
    if (el.isConnected) furnish(el.closest(".kdstudy"));
    else if (tries) setTimeout(attach, 50, tries - 1);
  };
  attach(200);
}

function furnish(frame) {
  // JupyterLab takes arrow keys from whatever has the focus in an output, to go from cell to cell. Here they are the
  // controls'.
  frame.addEventListener("keydown", (event) => {
    if (event.key.startsWith("Arrow")) event.stopPropagation();
  });

  // A table that somebody has opened stays open when it is drawn anew.
  let opened = null;
  const own = (details) => details.closest(".kdstudy") === frame;
  frame.addEventListener("toggle", ({ target }) => {
    if (target.isConnected && own(target)) opened = target.open;
  }, true);
  new MutationObserver(() => {
    if (opened === null) return;
    for (const each of frame.querySelectorAll("details")) if (own(each) && each.open !== opened) each.open = opened;
  }).observe(frame, { childList: true, subtree: true });
}
export default { render };
