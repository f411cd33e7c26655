"""Keypoints as COCO's result lists, and a callback that scores them during `fit`."""

from collections.abc import Iterable, Sequence

import keras
import numpy as np

from heads.metrics.average_precision import check_known, read_truth, to_plain_list
from heads.metrics.coco import prepare_path, save_results
from heads.metrics.keypoint_precision import check_sigmas, evaluate_keypoints, is_labelled, read_people
from heads.metrics.scorer import Scorer, with_progress
from heads.processes import gather_batches, is_first_process, on_this_process

KEYPOINT_THRESHOLD = 0.2  # as in mmpose: keypoints below do not count in a person's score


class KeypointScores(Scorer):
    """Scores a pose model after an epoch, for `fit(callbacks=[...])`.

    Puts "val_keypoints_AP", "val_keypoints_AP50" ... into the logs of the epoch, so that callbacks later in
    the list can use them. An epoch that is not scored repeats the scores of the last one that was; scores for
    which the truth has no person are not logged. Only the pictures in `image_ids` are scored.

    Args:
        dataset: Batches of `pose_evaluation_batches`, see `predict_keypoint_results`.
        truth: COCO JSON, a path or a dict.
        image_ids: Id of the picture of each person of `dataset`, in its order.
        sigmas: See `evaluate_keypoints`.
        every: Score after the first epoch of a training, and after each `every`-th.
        results_path: File for the results of the latest scored epoch; its folder is made. None: not kept.
        box_scores: See `predict_keypoint_results`.
        flip_test: Whether to average with the mirrored crops.

    Raises:
        ValueError: For `every` below 1, ids that the truth does not have, a truth that `evaluate_keypoints`
            refuses, or one without a labelled person on the pictures.
    """

    def __init__(
        self,
        dataset: Iterable,
        truth,
        image_ids: Sequence,
        sigmas: Sequence[float],
        every: int = 1,
        results_path=None,
        box_scores: Sequence[float] | None = None,
        flip_test: bool = False,
    ):
        super().__init__(dataset, every)
        self.truth, self.sigmas = read_truth(truth), check_sigmas(sigmas)
        self.flip_test = flip_test
        self.image_ids, self.box_scores = to_plain_list(image_ids), box_scores
        self.results_path = None if results_path is None else prepare_path(results_path)
        people = read_people(truth, len(self.sigmas))
        check_known("image_ids", self.image_ids, people.image_sizes)
        self.category_id, pictures = people.category_id, set(self.image_ids)
        if not any(each.image_id in pictures and is_labelled(each) for each in people.annotations):
            raise ValueError(
                "truth must have people with labelled keypoints, to be scored. Received none on "
                f"{len(pictures)} pictures"
            )

    def on_train_begin(self, logs=None):
        super().on_train_begin(logs)
        num_keypoints = getattr(self.model, "num_keypoints", len(self.sigmas))
        if num_keypoints != len(self.sigmas):
            raise ValueError(
                f"sigmas must have one for each of the model's {num_keypoints} keypoints. "
                f"Received: {len(self.sigmas)}"
            )

    def predict(self, model, progress: bool = False) -> list[dict]:
        """Returns COCO's result list of a model: see `predict_keypoint_results`."""
        return predict_keypoint_results(
            model,
            self.dataset,
            self.image_ids,
            self.category_id,
            self.box_scores,
            self.flip_test,
            progress,
        )

    def evaluate(self, results) -> dict:
        """Returns the scores of results on the pictures: see `evaluate_keypoints`."""
        return evaluate_keypoints(self.truth, results, self.sigmas, image_ids=set(self.image_ids))

    def score(self, model) -> dict:
        """Returns the scores of a model, and saves its results if there is a `results_path`."""
        results = self.predict(model)
        if self.results_path is not None and is_first_process():
            save_results(results, self.results_path)
        return self.evaluate(results)

    def describe(self, scores: dict) -> str:
        """Returns a few of the scores as text."""
        return f"keypoints AP {scores['keypoints_AP']:.2%}, AP50 {scores['keypoints_AP50']:.2%}"


def predict_keypoint_results(
    model,
    dataset: Iterable,
    image_ids: Sequence,
    category_id,
    box_scores: Sequence[float] | None = None,
    flip_test: bool = False,
    progress: bool = False,
) -> list[dict]:
    """Runs a pose model over all people and returns COCO's result list.

    Args:
        model: Keras model whose `predict_on_batch` gives "keypoints" and "scores", in pixels of the picture.
        dataset: Batches: inputs, or tuples that begin with them, as those of `pose_evaluation_batches`.
        image_ids: Id of the picture of each person, in the order of `dataset`.
        category_id: Of the people.
        box_scores: Score of each person's box, if a detector found it. None: 1 each.
        flip_test: Whether to average with the mirrored crops; the model needs `flip_pairs`.
        progress: Whether to show a progress bar.

    Returns:
        List of result dicts, see `to_keypoint_results`.

    Raises:
        ValueError: Where `dataset` has more or fewer people than there are ids or scores.
    """
    box_scores = [1.0] * len(image_ids) if box_scores is None else box_scores
    if len(box_scores) != len(image_ids):
        raise ValueError(
            f"box_scores must have one for each of {len(image_ids)} people. Received: {len(box_scores)}"
        )
    batches, count = [], 0
    with on_this_process(model) as model:
        model = model.with_flip_test() if flip_test else model
        for inputs in with_progress(dataset, progress):
            inputs = inputs[0] if isinstance(inputs, tuple | list) else inputs
            # As NumPy, because the batches are often TensorFlow's and the model may run on another backend.
            found = model.predict_on_batch(keras.tree.map_structure(np.asarray, inputs))
            found = {name: keras.ops.convert_to_numpy(found[name]) for name in ("keypoints", "scores")}
            count += len(found["scores"])
            if count > len(image_ids):
                raise ValueError(
                    "image_ids must have one id for each person of the dataset, which has more than "
                    f"{len(image_ids)}. Is it repeated, or shuffled? Received: {len(image_ids)} ids"
                )
            batches.append({name: values.astype("float64").tolist() for name, values in found.items()})
    results, count = [], 0
    for batch in gather_batches(batches):
        found = {name: np.asarray(values) for name, values in batch.items()}
        end = count + len(found["scores"])
        results += to_keypoint_results(found, image_ids[count:end], category_id, box_scores[count:end])
        count = end
    if count != len(image_ids):
        raise ValueError(
            f"image_ids must have one id for each of {count} people of the dataset. "
            f"Received: {len(image_ids)} ids"
        )
    return results


def to_keypoint_results(found: dict, image_ids: Sequence, category_id, box_scores: Sequence) -> list[dict]:
    """COCO's result list of a batch of people.

    A person's score is mmpose's: the mean of the scores of the keypoints above 0.2, 0 where there are none,
    times the score of the box.

    Args:
        found: "keypoints" (n, keypoints, 2), (x, y) in pixels of the picture, and "scores" (n, keypoints).
        image_ids: Id of the picture of each person.
        category_id: Of the people.
        box_scores: Score of each person's box.

    Returns:
        List of dicts of plain JSON types: "image_id", "category_id", "keypoints" (x, y, score, ...), "score".
    """
    keypoints, scores = (
        keras.ops.convert_to_numpy(found[name]).astype("float64") for name in ("keypoints", "scores")
    )
    rows = zip(to_plain_list(image_ids), keypoints, scores, box_scores, strict=True)
    results = []
    for image_id, points, heights, box_score in rows:
        sure = heights[heights > KEYPOINT_THRESHOLD]
        results.append(
            {
                "image_id": image_id,
                "category_id": category_id,
                "keypoints": np.concatenate([points, heights[:, None]], axis=1).ravel().tolist(),
                "score": float(sure.mean() if len(sure) else 0.0) * float(box_score),
            }
        )
    return results
