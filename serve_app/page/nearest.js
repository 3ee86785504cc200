// The vectors of the images dropped so far, and for each image the ones most like it.

export const MAX_VECTORS = 2000; // about 20 MB at 1,280 numbers each
const NUM_SHOWN = 5;

/** Vectors of unit length, so that their product is the cosine of the angle between them. */
export class Neighbours {
  /** `onChange(key)` hears when the neighbours of an image have changed. */
  constructor(onChange) {
    this.onChange = onChange;
    this.clear();
  }

  /** How many vectors are kept. */
  get size() {
    return this.vectors.size;
  }

  clear() {
    this.vectors = new Map(); // key -> { name, thumb, vector }, oldest first
    this.found = new Map(); // key of an image that is shown -> its neighbours, nearest first
  }

  /** Add an image, and let it find its place among the neighbours of the others. */
  add(key, name, thumb, numbers) {
    const mine = { key, name, thumb, vector: Float32Array.from(numbers) };
    this.vectors.delete(key);
    const nearest = [];
    for (const other of this.vectors.values()) {
      const similarity = product(mine.vector, other.vector);
      insert(nearest, { ...shownOf(other), similarity });
      const theirs = this.found.get(other.key);
      if (theirs && insert(theirs, { ...shownOf(mine), similarity })) this.onChange(other.key);
    }
    this.vectors.set(key, mine);
    this.found.set(key, nearest);
    if (this.vectors.size > MAX_VECTORS) this.vectors.delete(this.vectors.keys().next().value);
    this.onChange(key);
  }

  /** Return the neighbours of an image that is shown. */
  of(key) {
    return this.found.get(key) ?? [];
  }

  /** An image is not shown any more; its vector stays, for others to be compared with. */
  hide(key) {
    this.found.delete(key);
  }
}

const shownOf = ({ key, name, thumb }) => ({ key, name, thumb });

function product(left, right) {
  let sum = 0;
  for (let i = 0; i < left.length; i += 1) sum += left[i] * right[i];
  return sum;
}

/** Put a neighbour where it belongs; says whether it is among those shown. */
function insert(nearest, neighbour) {
  const same = nearest.findIndex(({ key }) => key === neighbour.key);
  if (same >= 0) nearest.splice(same, 1);
  const place = nearest.findIndex(({ similarity }) => similarity < neighbour.similarity);
  nearest.splice(place < 0 ? nearest.length : place, 0, neighbour);
  if (nearest.length > NUM_SHOWN) nearest.pop();
  return nearest.includes(neighbour);
}
