// A slider over named places: a native one, so that it has a name, a value in words and works from the keyboard.
function render({ model, el }) {
  const label = document.createElement("label");
  const name = document.createElement("span");
  const input = document.createElement("input");
  const output = document.createElement("output");
  label.className = "kdstudy-slider";
  label.append(name, input, output);
  input.type = "range";
  input.step = 1;

  let waiting = false; // for the kernel: while it draws, only the last place counts
  const place = () => Number(input.value);
  const say = () => {
    output.textContent = model.get("texts")[place()];
    input.setAttribute("aria-valuetext", output.textContent);
  };
  const send = () => {
    if (waiting || place() === model.get("index")) return;
    waiting = true;
    model.set("index", place());
    model.save_changes();
  };
  const draw = () => {
    name.textContent = model.get("label");
    input.setAttribute("aria-label", model.get("label"));
    input.min = 0;
    input.max = model.get("texts").length - 1;
    input.value = model.get("index");
    say();
  };

  input.addEventListener("input", () => { say(); send(); });
  model.on("change:heard", () => { waiting = false; send(); });
  model.on("change:index", () => { if (!waiting) { input.value = model.get("index"); say(); } });
  model.on("change:label change:texts", draw);
  draw();
  el.append(label);
}
export default { render };
