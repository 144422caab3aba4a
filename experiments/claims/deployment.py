"""Files in their runtimes: agreement with jmpq's evaluation, speed beside float files."""

from collections.abc import Iterator, Mapping
from typing import Any

from experiments.claims.claim import Claim, Json, Made, Path

NAME, MINILM, VIT = "deployment", "minilm_l6", "vit_cifar"
MADE = {
    NAME: Made(
        sha256="5059d038b534eb28",
        modules=("experiments.deployment",),
        stale="Made at commit 6324a73, MiniLM and ViT-Ti at 090e195, the small vision "
        "transformer at 7b4f878; other parts of the project have changed since.",
    )
}


def check(results: Mapping[str, Json]) -> list[Claim]:
    """The claims."""
    rows = results[NAME]["rows"]

    def cells(
        runtime: str, placement: str, *key: str, network: str | None = None, file: str = ""
    ) -> Iterator[tuple[Any, Path]]:
        for i, row in enumerate(rows):  # of every network with published weights, or of one
            wanted = network == row["network"] if network else row["network"] != MINILM
            wanted = wanted and row["file"].startswith(file)
            if wanted and row.get("placement") == placement and runtime in row["runtimes"]:
                value: Any = row["runtimes"][runtime]
                for part in key:
                    value = value[part]
                yield value, (NAME, "rows", i, "runtimes", runtime, *key)

    def same(runtime: str, placement: str, network: str | None = None) -> tuple[float, Path]:
        return min(cells(runtime, placement, "agreement", "same_class", network=network))

    def top1() -> tuple[float, Path]:
        found = []
        for runtime in ("onnxruntime", "openvino"):
            for placement in ("inputs", "stream"):
                both = (
                    cells(runtime, placement, "agreement", k) for k in ("top1", "top1_jmpq")
                )
                found += [(abs(a - b), path) for (a, path), (b, _) in zip(*both, strict=True)]
        return max(found)

    def faster(
        network: str, runtime: str, batch: str, placement: str = "stream"
    ) -> tuple[float, Path]:
        at = {"network": network, "file": "W8A8"}
        times = cells(runtime, placement, "cpu_ms", batch, **at)
        return min((own["float"] / own["exported"], (*path, "exported")) for own, path in times)

    def speed(network: str, runtime: str, batch: str, least: float, most: float) -> Claim:
        value, path = faster(network, runtime, batch)
        return Claim(
            id=f"deployment.{network}_{runtime}_{batch}",
            says=f"On the stream W8A8 of {network} is {least:g} to {most:g} times as fast as "
            f"float in {runtime} at batch {batch}.",
            value=value,
            least=least,
            most=most,
            decides=path,
        )

    def away(which: str) -> tuple[float, Path]:
        """Greatest difference of MiniLM's logits, of the largest logit."""
        (most,) = (
            x["largest_logit"] for x in rows if x["network"] == MINILM and x["file"] == "float"
        )
        found = [
            (value / most, path)
            for runtime in ("onnxruntime", "openvino")
            for placement in ("inputs", "stream")
            for value, path in cells(runtime, placement, "agreement", which, network=MINILM)
        ]
        return max(found)

    points = [(row["points"], (NAME, "rows", i, "points"))
              for i, row in enumerate(rows)
              if row["network"] == MINILM and "points" in row]  # fmt: skip
    floats = [(value, (NAME, "rows", i, "largest_difference", runtime))
              for i, row in enumerate(rows) if row["file"] == "float"
              for runtime, value in row["largest_difference"].items()]  # fmt: skip
    worst, resnet20 = max(floats), "resnet20"
    return [
        Claim(
            id="deployment.float",
            says="Float files give JAX's logits within 1e-4.",
            value=worst[0],
            most=1e-4,
            decides=worst[1],
        ),
        Claim(
            id="deployment.resnet20_inputs",
            says="With activations quantized at inputs, files of ResNet-20 have the class of "
            "jmpq's evaluation on at least 99.5 % of 1,000 images in onnxruntime and OpenVINO.",
            value=min(same(r, "inputs", resnet20)[0] for r in ("onnxruntime", "openvino")),
            least=0.995,
            decides=same("onnxruntime", "inputs", resnet20)[1],
        ),
        Claim(
            id="deployment.resnet20_stream",
            says="On the stream they do on at least 99.4 %, in LiteRT too.",
            value=min(
                same(r, "stream", resnet20)[0]
                for r in ("onnxruntime", "openvino", "ai_edge_litert")
            ),
            least=0.994,
            decides=same("openvino", "stream", resnet20)[1],
        ),
        Claim(
            id="deployment.imagenet_stream",
            says="On the stream the ImageNet networks do on at least 98 % in onnxruntime.",
            value=same("onnxruntime", "stream")[0],
            least=0.98,
            most=0.985,
            decides=same("onnxruntime", "stream")[1],
        ),
        Claim(
            id="deployment.imagenet_inputs",
            says="At inputs the least is 98.5 % in onnxruntime, below the aim of 99.5 %.",
            value=same("onnxruntime", "inputs")[0],
            least=0.984,
            most=0.995,
            decides=same("onnxruntime", "inputs")[1],
        ),
        Claim(
            id="deployment.top1",
            says="Top-1 of files and of jmpq's evaluation differ by at most 0.6 points.",
            value=top1()[0],
            most=0.006,
            decides=top1()[1],
        ),
        speed(resnet20, "onnxruntime", "1", 2, 2.2),
        speed(resnet20, "onnxruntime", "32", 2.2, 2.4),
        speed(resnet20, "openvino", "1", 1.8, 2),
        speed(resnet20, "openvino", "32", 2.7, 2.9),
        speed(resnet20, "ai_edge_litert", "1", 2.7, 3),
        speed("mobilenet_v1_0.75", "onnxruntime", "1", 2, 2.2),
        speed("mobilenet_v1_0.75", "onnxruntime", "32", 2.4, 2.6),
        speed("mobilenet_v1_0.75", "openvino", "1", 2.3, 2.5),
        speed("mobilenet_v1_0.75", "openvino", "32", 3.1, 3.3),
        speed(MINILM, "onnxruntime", "1", 2.2, 2.5),
        speed(MINILM, "onnxruntime", "32", 2.2, 2.5),
        speed(MINILM, "openvino", "1", 2.5, 2.7),
        speed(MINILM, "openvino", "32", 2.6, 2.8),
        speed(VIT, "onnxruntime", "1", 1.2, 1.3),
        speed(VIT, "onnxruntime", "32", 1.5, 1.6),
        speed(VIT, "openvino", "1", 1.2, 1.3),
        speed(VIT, "openvino", "32", 1.8, 1.9),
        Claim(
            id="deployment.vit",
            says="Files of the small vision transformer have the class of jmpq's evaluation "
            "on at least 99.6 % of 1,000 images in both runtimes.",
            value=min(same(r, "inputs", VIT)[0] for r in ("onnxruntime", "openvino")),
            least=0.996,
            decides=same("onnxruntime", "inputs", VIT)[1],
        ),
        Claim(
            id="deployment.minilm_points",
            says="MiniLM has 0 tensors on the stream: both placements give the same file.",
            value=max(points)[0],
            most=0,
            decides=max(points)[1],
        ),
        Claim(
            id="deployment.minilm_mean",
            says="Logits of MiniLM's files differ from jmpq's evaluation by at most 0.5 % of "
            "the largest logit in the mean.",
            value=away("mean")[0],
            most=0.005,
            decides=away("mean")[1],
        ),
        Claim(
            id="deployment.minilm_largest",
            says="No logit of them differs by more than 2 % of the largest.",
            value=away("largest")[0],
            most=0.02,
            decides=away("largest")[1],
        ),
        Claim(
            id="deployment.inputs_slower",
            says="With activations quantized at inputs alone W8A8 of ResNet-20 is slower than "
            "float in onnxruntime.",
            value=faster(resnet20, "onnxruntime", "1", "inputs")[0],
            most=0.9,
            decides=(*faster(resnet20, "onnxruntime", "1", "inputs")[1][:-1], "float"),
        ),
    ]
