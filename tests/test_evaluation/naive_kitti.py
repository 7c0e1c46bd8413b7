"""KITTI's 2D evaluation as straight loops over the written rules: slow, and independent of `mmkd.evaluation`.

A ground truth is `(type, truncation, occlusion, box)`, a detection `(type, box, score)`; a scene is a list of frames,
each a pair of such lists.
"""

LEVELS = [(40, 0, 0.15), (25, 1, 0.30), (25, 2, 0.50)]  # height, occlusion, truncation
LIMITS = {'car': 0.7, 'pedestrian': 0.5, 'cyclist': 0.5}
NEIGHBOUR = {'car': 'van', 'pedestrian': 'person_sitting', 'cyclist': ''}


def common_area(a, b):
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    return width * height if width > 0 and height > 0 else 0.0


def own_area(a):
    return (a[2] - a[0]) * (a[3] - a[1])


def overlap_of(a, b):
    common = common_area(a, b)
    return common / (own_area(a) + own_area(b) - common) if common else 0.0


def truth_state(truth, name, level):
    """'valid', 'ignored' or 'absent'."""
    kind, truncation, occlusion, box = truth
    height, max_occlusion, max_truncation = LEVELS[level]
    if kind.lower() == name:
        inside = box[3] - box[1] > height and occlusion <= max_occlusion and truncation <= max_truncation
        return 'valid' if inside else 'ignored'
    return 'ignored' if kind.lower() == NEIGHBOUR[name] else 'absent'


def found_state(found, name, level):
    """'valid', 'small' or 'absent'."""
    kind, box, _ = found
    if int(abs(box[3] - box[1])) < LEVELS[level][0]:
        return 'small'
    return 'valid' if kind.lower() == name else 'absent'


def scores_of_hits(truths, founds, name, level, limit):
    assigned, scores = set(), []
    for truth in truths:
        state = truth_state(truth, name, level)
        if state == 'absent':
            continue
        best = None
        for j, found in enumerate(founds):
            if found_state(found, name, level) == 'absent' or j in assigned:
                continue
            if overlap_of(truth[3], found[1]) > limit and (best is None or found[2] > founds[best][2]):
                best = j
        if best is None:
            continue
        assigned.add(best)
        if state == 'valid' and found_state(founds[best], name, level) == 'valid':
            scores.append(founds[best][2])
    return scores


def thresholds_of(scores, n):
    v = sorted(scores, reverse=True)
    kept, r = [], 0.0
    for i in range(len(v)):
        left = (i + 1) / n
        right = (i + 2) / n if i + 1 < len(v) else left
        if (right - r) < (r - left) and i + 1 < len(v):
            continue
        kept.append(v[i])
        r += 1.0 / 40.0
    return kept


def count_frame(truths, founds, name, level, limit, t):
    """Hits and false positives at one threshold."""
    hits, assigned = 0, set()
    for truth in truths:
        state = truth_state(truth, name, level)
        if state == 'absent':
            continue
        best, best_overlap, best_small = None, 0.0, None
        for j, found in enumerate(founds):
            if j in assigned or found[2] < t:
                continue
            overlap = overlap_of(truth[3], found[1])
            if not overlap > limit:
                continue
            kind = found_state(found, name, level)
            if kind == 'valid' and overlap > best_overlap:
                best, best_overlap = j, overlap
            elif kind == 'small' and best_small is None:
                best_small = j
        chosen = best if best is not None else best_small
        if chosen is None:
            continue
        assigned.add(chosen)
        hits += state == 'valid' and chosen == best
    wrong = 0
    for j, found in enumerate(founds):
        if j in assigned or found[2] < t or found_state(found, name, level) != 'valid':
            continue
        regions = [truth[3] for truth in truths if truth[0].lower() == 'dontcare']
        excused = any(
            common_area(region, found[1]) > 0 and common_area(region, found[1]) / own_area(found[1]) > limit
            for region in regions
        )
        wrong += not excused
    return hits, wrong


def naive_eval(scene, name, level, limit=None):
    """R40, R11 and the number of valid ground truths of one class at one level."""
    name = name.lower()
    limit = LIMITS[name] if limit is None else limit
    n = sum(truth_state(truth, name, level) == 'valid' for truths, _ in scene for truth in truths)
    if not any(found[0].lower() == name and found[1][0] >= 0 for _, founds in scene for found in founds):
        return 0.0, 0.0, n
    scores = [s for truths, founds in scene for s in scores_of_hits(truths, founds, name, level, limit)]
    thresholds = thresholds_of(scores, n)
    curve = [0.0] * 41
    for k, t in enumerate(thresholds):
        counts = [count_frame(truths, founds, name, level, limit, t) for truths, founds in scene]
        hits, wrong = sum(c[0] for c in counts), sum(c[1] for c in counts)
        curve[k] = hits / (hits + wrong) if hits + wrong else 0.0
    for k in range(len(thresholds)):
        curve[k] = max(curve[k:])
    return 100 * sum(curve[1:]) / 40, 100 * sum(curve[::4]) / 11, n


def as_frames(scene):
    """The scene as the two arguments of `kitti_eval`."""
    truths = [
        {
            'name': [truth[0] for truth in frame],
            'truncated': [truth[1] for truth in frame],
            'occluded': [truth[2] for truth in frame],
            'bbox': [truth[3] for truth in frame],
        }
        for frame, _ in scene
    ]
    founds = [
        {
            'name': [found[0] for found in frame],
            'bbox': [found[1] for found in frame],
            'score': [found[2] for found in frame],
        }
        for _, frame in scene
    ]
    return truths, founds
