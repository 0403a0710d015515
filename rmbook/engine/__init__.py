"""Layers that add a sparse trained matrix to a frozen weight: W + S.

In: a model and masks. Out: the model with `MaskedLinear` in the place of its target layers, and a `RandomMask`, the
handle to train, merge or remove them.

    masking        `apply_random_mask`, `apply_masks`, `RandomMask`
    targets        which layers a name such as "q_proj" means
    layer          `MaskedLinear`; reference has its dense form, which it is tested against
    borrowed       the same layer for other libraries: W + S is in the weight for one product only
    tap            the gradient of the values, and the write of W + S
    maskable       which layers can be masked
    sharded        layers whose weight FSDP2 shards; shards has the tensors that it takes
    quantised      layers whose weight is quantised; dequantise says which these are, quantised_product computes
    sparse_product x S^T alone, where it is cheaper than writing W + S
    gradient_check the error for a layer that no gradient reaches
    conv1d         layers that are saved in the form of GPT-2's Conv1D
    buffers        what training changes beside weights: the statistics of a batch norm
    merge          W + S of all layers brought up to date at once; merge_triton does it on a GPU
    backends       the choice of what computes the gradient of a layer's values
    product_torch, product_triton, product_spops
                   the product that this gradient is, by three libraries
    product_costs  which way is the cheapest on this GPU
"""
