"""Statistics of experts by transformers' own modules."""

import torch

from studies.oracle import original_model, parameter


def whole_factors(folder, tokens):
    """{matrix of an expert: (hessian, rows, columns, tokens)}.

    The experts are computed again from what transformers' routers say. columns: sums over the
    tokens, the others are means.
    """
    model = original_model(folder)
    seen = {}
    found = {}

    def note(name):
        def hook(module, args, output):
            output.requires_grad_()
            output.retain_grad()
            seen.setdefault(name, []).append((*(a.detach() for a in args), output))

        return hook

    for name, module in model.named_modules():
        if name.endswith(".experts"):
            module.register_forward_hook(note(name))
    for ids in tokens:
        scores = model(input_ids=ids[None]).logits[0]
        torch.nn.functional.cross_entropy(scores[:-1], ids[1:], reduction="sum").backward()
    parameters = dict(model.named_parameters())
    for name, calls in seen.items():
        hidden, chosen, share = (torch.cat([call[i] for call in calls]) for i in range(3))
        upstream = torch.cat([call[3].grad for call in calls])
        for j in range(int(chosen.max()) + 1):
            token, slot = torch.where(chosen == j)
            gate, up, down = (
                parameter(parameters, f"{name}.{j}.{kind}_proj.weight").detach()
                for kind in ("gate", "up", "down")
            )
            x = hidden[token]
            g = (x @ gate.T).requires_grad_()
            u = (x @ up.T).requires_grad_()
            inner = torch.nn.functional.silu(g) * u
            z = (inner @ down.T).requires_grad_()
            outer = share[token, slot, None] * upstream[token]
            inner.backward(outer @ down)
            for kind, given, dz in (
                ("gate", x, g.grad),
                ("up", x, u.grad),
                ("down", inner.detach(), outer),
            ):
                assert z.shape == outer.shape
                factors = (
                    given.T @ given / len(given),
                    (dz**2).sum(0) / tokens.numel(),
                    (dz**2).sum(1) @ given**2,
                )
                found[f"{name}.{j}.{kind}_proj.weight"] = *factors, len(token)
    return found
