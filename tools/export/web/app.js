// The page: a picture that is chosen, dropped or photographed, and the classes that GhostNet finds in it.
import * as ort from './ort.wasm.min.mjs';
import {decode, evaluationCrop} from './picture.js';

const MOST = 5;    // classes to show
const element = id => document.getElementById(id);
const inputs = [element('choose'), element('photograph')];
let session, labels, last = 0;

function say(text, wrong = false) {
  element('status').textContent = text;
  element('status').classList.toggle('wrong', wrong);
}

async function load() {
  ort.env.wasm.numThreads = 1;    // more need headers that a static server does not send
  ort.env.wasm.wasmPaths = new URL('./', import.meta.url).href;
  [session, labels] = await Promise.all([ort.InferenceSession.create('model.onnx'), fetch('labels.json').then(r => r.json())]);
  for (const input of inputs) input.disabled = false;
  say('Ready: choose a picture.');
}

function show(probabilities) {
  const best = [...probabilities.keys()].sort((i, j) => probabilities[j] - probabilities[i]).slice(0, MOST);
  element('classes').replaceChildren(...best.map(label => {
    const item = document.createElement('li'), name = document.createElement('div'), bar = document.createElement('div');
    name.className = 'name';
    bar.className = 'bar';
    for (const text of [labels[label], (100 * probabilities[label]).toFixed(1) + ' %']) {
      name.append(Object.assign(document.createElement('span'), {textContent: text}));
    }
    bar.append(document.createElement('div'));
    bar.firstChild.style.width = 100 * probabilities[label] + '%';
    item.dataset.label = label;
    item.dataset.probability = probabilities[label];
    item.append(name, bar);
    return item;
  }));
}

async function classify(file) {
  const turn = ++last;    // of two pictures at once, the later one counts
  say('Looking at ' + file.name + ' …');
  element('classes').replaceChildren();
  const start = performance.now();
  let image;
  try {
    image = await decode(file);
  } catch {
    if (turn === last) say(file.name + ' is not a picture that this browser can read.', true);
    return;
  }
  const size = session.inputMetadata[0].shape[1];
  const input = new ort.Tensor('uint8', evaluationCrop(image, size), [1, size, size, 3]);
  const {probabilities} = await session.run({input});
  if (turn !== last) return;
  preview(file, image);
  show(probabilities.data);
  element('status').scrollIntoView({block: 'nearest'});
  say(`${file.name}: ${Math.round(performance.now() - start)} ms`);
}

function preview(file, image) {
  const picture = element('preview');
  URL.revokeObjectURL(picture.src);
  picture.src = URL.createObjectURL(file);
  picture.alt = 'The picture ' + file.name;
  picture.classList.toggle('small', Math.max(image.width, image.height) < 160);
  picture.hidden = false;
  element('hint').textContent = 'Drop another picture here';
}

for (const input of inputs) {
  input.addEventListener('change', () => {
    if (input.files.length) run(input.files[0]);
    input.value = '';    // so that the same file can be chosen again
  });
}
function run(file) {
  classify(file).catch(error => say('The network failed: ' + error.message, true));
}

for (const type of ['dragover', 'dragleave', 'drop']) {
  document.addEventListener(type, event => {
    event.preventDefault();
    element('drop').classList.toggle('over', type === 'dragover');
    if (type === 'drop' && session && event.dataTransfer.files.length) run(event.dataTransfer.files[0]);
  });
}

load().catch(error => say('The network cannot be loaded: ' + error.message, true));
