"""One connector on every level of a feature pyramid.

Shapes: `N` images, `C` channels, `H, W` cells of a level, `L` levels. Strides are px of the padded input per cell.
"""

import inspect
from collections.abc import Sequence

from torch import Tensor, nn

from mmkd.registry import MODELS

# What MMRazor's own connectors call the channels of the two sides.
HOST_NAMES = {
    'student_channels': 'in_channels',
    'teacher_channels': 'out_channels',
    'in_channel': 'in_channels',
    'out_channel': 'out_channels',
}


@MODELS.register_module()
class PyramidConnector(nn.Module):
    """A connector of its own for every level, in place of a copied block for each level in the config.

    Weights are not shared between levels. Each of the four per-level arguments is handed, one entry a level, to
    connectors whose constructor has an argument of that name, or of the name that MMRazor's connectors have for it.

    Args:
        connector: config of the connector of one level; what it says itself holds for all levels.
        in_channels: C of each level that comes in, finest first.
        out_channels: C of each level of the other side.
        in_strides: stride of each level that comes in, in px.
        out_strides: stride of each level of the other side, in px.

    Raises:
        TypeError: a per-level argument is a number: the record is a single map.
        ValueError: the numbers of levels differ, or none is given.
    """

    def __init__(
        self,
        *,
        connector: dict,
        in_channels: Sequence[int] | None = None,
        out_channels: Sequence[int] | None = None,
        in_strides: Sequence[int] | None = None,
        out_strides: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        given = {
            'in_channels': in_channels,
            'out_channels': out_channels,
            'in_strides': in_strides,
            'out_strides': out_strides,
        }
        given = {name: value for name, value in given.items() if value is not None}
        levels = count_levels(given)
        wanted = constructor_arguments(connector)
        # what the connector's own config says holds for all levels
        passed = {
            name: given[HOST_NAMES.get(name, name)]
            for name in wanted
            if HOST_NAMES.get(name, name) in given and connector.get(name) is None
        }
        self.levels = nn.ModuleList(
            MODELS.build({**connector, **{name: value[level] for name, value in passed.items()}})
            for level in range(levels)
        )

    def forward(self, feats: Sequence[Tensor], others: Sequence[Tensor] | None = None) -> tuple[Tensor, ...]:
        """Each level through its connector.

        Args:
            feats: L maps (N, C, H, W).
            others: L maps of the other side, for connectors that see both.

        Returns:
            What the L connectors give.

        Raises:
            TypeError: an argument is not a sequence of levels.
            ValueError: another number of levels than the connector was built for.
        """
        for name, value in (('feats', feats), ('others', others)):
            if value is None and name == 'others':
                continue
            if not isinstance(value, list | tuple):
                raise TypeError(f'{name} must be a tuple with one map a level, got {type(value).__name__}.')
            if len(value) != len(self.levels):
                raise ValueError(f'{name} must have {len(self.levels)} levels, got {len(value)}.')
        pairs = zip(feats) if others is None else zip(feats, others, strict=True)
        return tuple(level(*pair) for level, pair in zip(self.levels, pairs, strict=True))


def count_levels(arguments: dict[str, Sequence[int]]) -> int:
    """Number of levels that per-level arguments agree on."""
    for name, value in arguments.items():
        if not isinstance(value, list | tuple):
            raise TypeError(
                f'{name} must have one number a level, got {value!r}; a record that is a single map '
                'takes the inner connector directly.'
            )
    counts = {name: len(value) for name, value in arguments.items()}
    if len(set(counts.values())) != 1:
        raise ValueError(f'The per-level arguments must agree in their number of levels, got {counts or "none"}.')
    return next(iter(counts.values()))


def constructor_arguments(connector: dict) -> set[str]:
    """Names of the arguments that a connector's constructor has.

    Raises:
        ValueError: the config names no registered connector.
    """
    cls = connector.get('type')
    if isinstance(cls, str):
        cls = MODELS.get(cls)
    if cls is None:
        raise ValueError(f'connector must name a registered type, got {connector.get("type")!r}.')
    return set(inspect.signature(cls.__init__).parameters)
