"""The attack by quantile regression: how sure a model that never saw a record would be, learnt from non-members alone.

A member is who is surer than the 1 - alpha quantile of strangers of the same kind; alpha is the share of false alarms.
No shadow model is trained. Bertran et al., "Scalable membership inference attacks via quantile regression", NeurIPS
2023 (arXiv 2307.03694): the pinball loss of their algorithm 1, here in boosted trees.

The regression must not know the strangers that it is judged by. So patients are dealt into groups, members and
non-members alike, and a group is scored by what was learnt from the non-members of all other groups.

Trees know the strangers they learnt from too well, and then ask too little of the next: they raised a false alarm for
up to a sixth where a tenth was asked. So the published threshold is moved to where at most a tenth of strangers, each
scored without their own group, lie beyond (cross-conformal: Vovk, Annals of Mathematics and Artificial Intelligence 74,
2015). Patients weigh alike, and the next patient counts as one that lies beyond. The order of scores, and so the AUC,
is that of the trees.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np

from histocrypt.audit.membership import Scale, confidence
from histocrypt.errors import InputError

FALSE_ALARMS = 0.1
"""Asked for at the published threshold. Fewer cannot be learnt from a few hundred spots."""
LEVELS = (0.5, 1 - FALSE_ALARMS)
"""Quantiles of strangers' confidence that the score is read between."""
GROUPS = 5
LEAST_SPREAD = 0.05
"""Between the two quantiles of a record, as a share of their mean distance: crossed ones tell nothing of a spread."""
ROUNDS, RATE, LEAVES, LEAST_LEAF = 40, 0.1, 4, 40
"""Small trees: larger ones know the few strangers by heart."""


class Strangers:
    """Who is learnt from, and by what: the same for every model of these records, such as the one made to leak.

    Parameters
    ----------
    features
        (n, d) of what the attacker knows of a record without the model: its truth, and its tile's features. Never what
        the model says of it, from which its error follows.
    member
        (n,) bool: of the attacked model.
    patients
        (n,) str.
    seed
        Of the groups and the trees.

    Raises
    ------
    InputError
        If fewer than two patients are non-members: a patient cannot be judged by itself.
    """

    def __init__(self, features: np.ndarray, member: np.ndarray, patients: np.ndarray, *, seed: int = 0) -> None:
        self.features, self.member = np.asarray(features, dtype=np.float32), np.asarray(member)
        self.patients, self.seed = np.asarray(patients).astype(str), seed
        people = np.unique(self.patients[~self.member])
        if len(people) < 2:
            raise InputError(
                "there are too few non-members to train on some and judge others",
                field="patients",
                value=people.tolist(),
                expected="at least 2 non-members",
            )

    @cached_property
    def groups(self) -> np.ndarray:
        """(n,) int; a patient is in one, and each has non-members."""
        rng, groups = np.random.default_rng([self.seed, 8]), np.empty(len(self.member), dtype=int)
        strangers = np.unique(self.patients[~self.member])
        number = min(GROUPS, len(strangers))
        for names in (strangers, np.setdiff1d(self.patients, strangers)):
            for group, name in enumerate(rng.permutation(names)):
                groups[self.patients == name] = group % number
        return groups

    def quantiles(self, confident: np.ndarray, level: float) -> np.ndarray:
        """Return (n,) the quantile of strangers' confidence that each record would have, if it were one.

        Parameters
        ----------
        confident
            (n,) of `membership.confidence`.
        level
            Between 0 and 1.
        """
        from sklearn.ensemble import HistGradientBoostingRegressor

        expected = np.empty(len(confident))
        for group in np.unique(self.groups):
            judged = self.groups == group
            learnt = ~judged & ~self.member
            trees = HistGradientBoostingRegressor(
                loss="quantile",
                quantile=level,
                max_iter=ROUNDS,
                learning_rate=RATE,
                max_leaf_nodes=LEAVES,
                min_samples_leaf=LEAST_LEAF,
                early_stopping=False,
                random_state=self.seed,
            ).fit(self.features[learnt], confident[learnt])
            expected[judged] = trees.predict(self.features[judged])
        return expected

    def scores(self, loss: np.ndarray, *, scale: Scale = "squared") -> np.ndarray:
        """Return (n,) scores, between strangers' median and upper quantile and on along that line; above 0: a member.

        A threshold of 0 is the published test at a false alarm for at most `FALSE_ALARMS` of strangers. Of fewer than
        nine of them so little can be said of the next that all of their spots must lie below it.

        Parameters
        ----------
        loss
            (n,) under the attacked model.
        scale
            Of `membership.confidence`.
        """
        confident = confidence(loss, scale)
        middle, upper = (self.quantiles(confident, level) for level in LEVELS)
        apart = upper - middle
        least = max(LEAST_SPREAD * float(np.abs(apart).mean()), 1e-12)
        score = (confident - middle) / np.maximum(apart, least)
        return score - self._threshold(score[~self.member])

    def _threshold(self, score: np.ndarray) -> float:
        """Return what strangers' scores exceed in a share of `FALSE_ALARMS`, were there one more patient beyond all."""
        names, person, spots = np.unique(self.patients[~self.member], return_inverse=True, return_counts=True)
        order = np.argsort(score, kind="stable")
        reached = np.cumsum(1 / spots[person.ravel()][order]) / (len(names) + 1)
        place = np.searchsorted(reached, 1 - FALSE_ALARMS - 1e-12)
        return float(score[order][min(int(place), len(score) - 1)])
