// JupyterLab takes arrow keys from whatever has the focus in an output, to go from cell to cell. Within a frame they are
// the controls'.
function render({ el }) {
  const keep = (event) => {
    if (event.key.startsWith("Arrow")) event.stopPropagation();
  };
  const attach = () => {
    if (el.isConnected) el.closest(".kdstudy")?.addEventListener("keydown", keep);
    else requestAnimationFrame(attach);
  };
  attach();
}
export default { render };
