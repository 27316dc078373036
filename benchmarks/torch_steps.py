"""The steps of KD and VID in PyTorch, for `step_time.py --against=torch`.

A process of its own, since PyTorch and TensorFlow do not get on in one: it reads the name of a
variant from each line of its input, takes a step, and writes `[wall seconds, CPU seconds, weights
of the losses]`. A step is what RepDistiller's `train_student.py` does, written anew over public
operations: the student's forward pass with its features, the teacher's without a gradient, the
losses, `zero_grad`, `backward`, SGD with momentum. Its averages and accuracies, for which it waits
for the device in every step, are left out.
"""

import json
import sys
import time

import torch
from torch import nn
from torch.nn import functional

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Block(nn.Module):
    """Two 3x3 convolutions, and a 1x1 convolution beside them where the shape changes."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Identity()
        if stride != 1 or inputs != outputs:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = functional.relu(self.bn1(self.conv1(x)))
        return functional.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class ResNetTimesFour(nn.Module):
    """The network of `keras_mikd.models.resnet8x4` and the like: `(stages, logits)` of images."""

    WIDTHS = (32, 64, 128, 256)

    def __init__(self, depth, classes):
        super().__init__()
        stem, *widths = self.WIDTHS
        self.stem = nn.Conv2d(3, stem, 3, 1, 1, bias=False)
        self.bn = nn.BatchNorm2d(stem)
        stages, inputs = [], stem
        for number, width in enumerate(widths):
            blocks = []
            for block in range((depth - 2) // 6):
                blocks.append(Block(inputs, width, 2 if number and not block else 1))
                inputs = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.classifier = nn.Linear(inputs, classes)

    def forward(self, x):
        x = functional.relu(self.bn(self.stem(x)))
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return features, self.classifier(x.mean((2, 3)))


class SoftTargets(nn.Module):
    """KD: the divergence from the teacher's softened probabilities."""

    weight, temperature = 0.9, 4.0

    def forward(self, teacher, student):
        p = functional.log_softmax(student[1] / self.temperature, 1)
        q = functional.softmax(teacher[1] / self.temperature, 1)
        return functional.kl_div(p, q, reduction="batchmean") * self.temperature**2


class Heads(nn.Module):
    """VID on every stage: a mean by three 1x1 convolutions, a variance for every channel."""

    weight = 1.0

    def __init__(self, widths):
        super().__init__()

        def mean(width):
            one = [nn.Conv2d(width, width, 1, bias=False) for _ in range(3)]
            return nn.Sequential(one[0], nn.ReLU(), one[1], nn.ReLU(), one[2])

        self.means = nn.ModuleList(mean(width) for width in widths)
        # The inverse of softplus at 5 less the smallest variance.
        first = torch.expm1(torch.tensor(5.0 - 1e-5)).log()
        self.scales = nn.ParameterList(nn.Parameter(first * torch.ones(w)) for w in widths)

    def forward(self, teacher, student):
        total = 0.0
        for mean, scale, t, s in zip(self.means, self.scales, teacher[0], student[0], strict=True):
            variance = (functional.softplus(scale) + 1e-5)[None, :, None, None]
            total = total + 0.5 * ((mean(s) - t) ** 2 / variance + variance.log()).mean()
        return total


def count(module):
    """Returns how many weights of a module are trained."""
    return sum(p.numel() for p in module.parameters())


def new_step(method, depths, classes, batch_size, *, compiled=False):
    """Returns a function of nothing that takes a step, and how many weights its losses have.

    Args:
        method: `"KD"` or `"VID"`.
        depths: Those of teacher and student.
        classes: Number of classes.
        batch_size: Images in the batch, which stays the same.
        compiled: Whether `torch.compile` compiles the forward passes and the losses.
    """
    torch.manual_seed(0)
    teacher, student = (ResNetTimesFour(depth, classes).to(DEVICE) for depth in depths)
    loss = SoftTargets() if method == "KD" else Heads(ResNetTimesFour.WIDTHS[1:])
    loss = loss.to(DEVICE)
    teacher.eval()
    trained = [*student.parameters(), *loss.parameters()]
    # A rate of 0 costs the same arithmetic, as in the other variants.
    optimizer = torch.optim.SGD(trained, lr=0.0, momentum=0.9)
    x = torch.randn(batch_size, 3, 32, 32, device=DEVICE)
    y = torch.randint(classes, (batch_size,), device=DEVICE)

    def total():
        seen = student(x)
        with torch.no_grad():
            shown = teacher(x)
        return functional.cross_entropy(seen[1], y) + loss.weight * loss(shown, seen)

    total = torch.compile(total) if compiled else total

    def step():
        value = total()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    return step, count(loss)


def main(teacher_depth, student_depth, classes, batch_size):
    """Takes steps of `<method> <eager or compiled>` as they are asked for, until the input ends."""
    depths = int(teacher_depth), int(student_depth)
    made = {}
    for line in sys.stdin:
        name = line.strip()
        if name not in made:
            method, how = name.split()
            options = {"compiled": how == "compiled"}
            made[name] = new_step(method, depths, int(classes), int(batch_size), **options)
        step, extra = made[name]
        wall, cpu = time.perf_counter(), time.process_time()
        step()
        seconds = time.perf_counter() - wall, time.process_time() - cpu
        print(json.dumps([*seconds, extra]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
