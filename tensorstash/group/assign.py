"""Values given to a group by name: ``g["x"] = values``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..array import Array
from ..create import as_values, check_above, make_spec, save_at
from ..driver import located
from ..errors import AlreadyExists, Invalid, Unsupported
from ..metadata import node
from ..metadata.belongings import Belongings
from ..trees.rewriting import copy_to

if TYPE_CHECKING:
    from .group import Group


def assign(group: Group, path: str, value: Any) -> None:
    """Store ``value`` as a whole array at ``path`` below the driver's root, in place of an array
    that is there: a handle's as it is stored there, other values as those of a new array are."""
    driver, name = group.driver, path[len(group.path) : -1]
    if isinstance(value, type(group)):
        raise Invalid(
            f"{name!r} cannot be assigned a group; copy what it holds: tensorstash.copy(group, ...)"
        )
    node.check_place(driver, path)
    check_above(driver, path, group.zarr_format, overwrite=True, in_records=False)

    def refuse_group(found: Belongings) -> bool:
        if found.is_group and found.what is None:
            raise AlreadyExists(
                f"{located(driver, path)} is a group, which an assignment would delete with all "
                f"below it; del group[{name!r}] first, or choose another name"
            )
        return False

    if isinstance(value, Array):
        origin = value.settle()
        same = origin.spec.zarr_format == group.zarr_format
        changes = {} if same else {"zarr_format": group.zarr_format}
        copy_to(origin, driver, path, changes, overwrite=True, spare=refuse_group)
        return
    values, kind = as_values(value, None, None)
    try:
        spec = make_spec(values.shape, kind, zarr_format=group.zarr_format)
    except (Invalid, Unsupported) as error:
        raise type(error)(f"{name!r} cannot be assigned {type(value).__name__}: {error}") from error
    save_at(driver, path, spec, group.settings, values, overwrite=True, spare=refuse_group)
