"""The recipes that the tests in this folder know formula by formula."""

from stackjax import recipe

MODULES = (
    recipe.admin,
    recipe.complete_p,
    recipe.deepnorm,
    recipe.depth_init,
    recipe.dynamic_tanh,
    recipe.gate,
    recipe.inner_norm,
    recipe.placement,
    recipe.scaled,
    recipe.shaped,
    recipe.sigma_reparam,
    recipe.t_fixup,
    recipe.two_streams,
)

KINDS = {
    name: kind
    for module in MODULES
    for name, kind in vars(module).items()
    if isinstance(kind, type) and issubclass(kind, recipe.Recipe) and kind.__module__ == module.__name__
}
