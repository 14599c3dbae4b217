// An explorer: controls above a picture and its sentence. The same code runs in a notebook, where
// the kernel draws a picture when it is asked for, and on a page of its own, which holds them all.

// Build the controls and the picture in `el`. `places` says at which of its values each control
// stands. `moved(places)` is called after a move; `ask(places)` asks for a picture that is missing,
// and returns false where nobody can draw it. Returns `put`, which takes a picture that was drawn,
// and `move`, which sets the controls.
export function explore(el, { title, controls, places, moved, ask }) {
  const frames = new Map(); // "0,2,5" -> picture, sentence and texts of these places
  let used = Math.max(0, controls.findIndex((control) => control.kind === "slider"));
  let waiting = false; // for one picture at a time, so that the kernel stays free for others
  places = [...places];

  el.classList.add("fairlab-explorer");
  const form = add(el, "form");
  form.setAttribute("aria-label", title);
  form.addEventListener("submit", (event) => event.preventDefault());
  const picture = add(add(el, "figure"), "img");
  const sentence = add(el, "p");
  sentence.setAttribute("aria-live", "polite");
  const texts = add(el, "div");
  const inputs = controls.map((control, number) => {
    const label = add(form, "label", control.kind);
    const name = add(label, "span", "name");
    name.textContent = control.label;
    const input = makeInput(label, control);
    input.dataset.lmSuppressShortcuts = "true"; // JupyterLab would take the arrow keys for itself
    input.addEventListener("input", () => {
      places[number] = placeOf(input, control);
      used = number;
      show();
      moved([...places]);
    });
    return input;
  });

  function makeInput(label, control) {
    if (control.kind === "choice") {
      const input = add(label, "select");
      for (const value of control.values) add(input, "option").textContent = value;
      return input;
    }
    const input = document.createElement("input");
    if (control.kind === "switch") {
      input.type = "checkbox";
      label.prepend(input);
    } else {
      input.type = "range";
      input.max = control.values.length - 1;
      label.append(input);
      add(label, "output");
    }
    return input;
  }

  function placeOf(input, control) {
    if (control.kind === "choice") return input.selectedIndex;
    return control.kind === "switch" ? Number(input.checked) : Number(input.value);
  }

  // Show what the places say, and ask for it where it is missing.
  function show() {
    controls.forEach((control, number) => {
      const input = inputs[number], place = places[number];
      if (control.kind === "choice") input.selectedIndex = place;
      else if (control.kind === "switch") input.checked = Boolean(place);
      else {
        input.value = place;
        input.setAttribute("aria-valuetext", control.values[place]);
        input.nextSibling.textContent = control.values[place];
      }
    });
    const frame = frames.get(places.join());
    if (frame) {
      picture.src = frame.picture;
      picture.alt = `${title}. ${frame.sentence}`;
      sentence.textContent = frame.sentence;
      texts.replaceChildren(...frame.texts.map(quote));
    }
    el.setAttribute("aria-busy", String(!frame));
    askForNext();
  }

  // The picture that is missing first; then those that are one move away, the control in use first.
  function askForNext() {
    if (waiting) return;
    const next = frames.has(places.join()) ? oneMoveAway() : places;
    if (next) waiting = ask([...next]);
  }

  function oneMoveAway() {
    const order = [used, ...controls.keys()].filter((n, i) => i === 0 || n !== used);
    for (const number of order) {
      const here = places[number];
      const values = [...controls[number].values.keys()];
      values.sort((a, b) => Math.abs(a - here) - Math.abs(b - here));
      for (const value of values) {
        const next = [...places];
        next[number] = value;
        if (!frames.has(next.join())) return next;
      }
    }
    return null;
  }

  function put(key, frame) {
    frames.set(key, frame);
    waiting = false;
    if (key === places.join()) show();
    else askForNext();
  }

  function move(to) {
    if (to.join() === places.join()) return;
    places = [...to];
    show();
  }

  show();
  return { put, move };
}

function add(parent, tag, className) {
  const child = parent.appendChild(document.createElement(tag));
  if (className) child.className = className;
  return child;
}

function quote(text) {
  const block = document.createElement("blockquote");
  block.textContent = text;
  return block;
}

// In a notebook: what anywidget calls. A picture comes as a message with the bytes of a PNG.
function render({ model, el }) {
  const urls = [];
  const { put, move } = explore(el, {
    title: model.get("title"),
    controls: model.get("controls"),
    places: model.get("places"),
    moved(places) {
      model.set("places", places);
      model.save_changes();
    },
    ask(places) {
      model.send({ places });
      return true;
    },
  });
  const take = ({ places, sentence, texts }, buffers) => {
    const picture = URL.createObjectURL(new Blob([buffers[0]], { type: "image/png" }));
    urls.push(picture);
    put(places.join(), { picture, sentence, texts });
  };
  model.on("msg:custom", take);
  const follow = () => move(model.get("places"));
  model.on("change:places", follow);
  return () => {
    model.off("msg:custom", take);
    model.off("change:places", follow);
    urls.forEach((url) => URL.revokeObjectURL(url));
  };
}

export default { render };
