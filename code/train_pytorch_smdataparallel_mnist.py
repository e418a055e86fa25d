"""Train a small convolutional network on handwritten digits, data-parallel over SageMaker's SMDDP.

The channel `training` has `train/<digit>/*.png` and `validation/<digit>/*.png` (see preprocessing.py).
Runs as one process, under torchrun or under mpirun, on one host or several, on GPUs or on CPU.
"""

import argparse
import json
import os
import signal
import sys
import time

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset
from torch.utils.data.distributed import DistributedSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder


def parse_args():
    parser = argparse.ArgumentParser()

    # Hyperparameters: the estimator's `hyperparameters`, given by SageMaker as --name value.
    parser.add_argument("--batch_size", type=int, default=32, help="images per step and process")
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--image_size", type=int, default=128, help="images are scaled to this many pixels")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--print_freq", type=int, default=10, help="steps between two lines of the log")
    parser.add_argument(
        "--num_workers", type=int, default=0, help="data loader processes, each process's own"
    )

    # Places that SageMaker decides on.
    parser.add_argument("--model_dir", default=os.environ.get("SM_MODEL_DIR", "/opt/ml/model"))
    parser.add_argument(
        "--data_dir", default=os.environ.get("SM_CHANNEL_TRAINING", "/opt/ml/input/data/training")
    )
    parser.add_argument(
        "--output_data_dir", default=os.environ.get("SM_OUTPUT_DATA_DIR", "/opt/ml/output/data")
    )
    parser.add_argument("--checkpoint_dir", default="/opt/ml/checkpoints")

    return parser.parse_args()


class Net(nn.Module):
    """Two convolutions and two linear layers, for grey images of any size from 8 pixels up."""

    def __init__(self, classes=10):
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3, padding=1, bias=False),
            nn.BatchNorm2d(32),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d(4),
        )
        self.classifier = nn.Sequential(
            nn.Linear(64 * 4 * 4, 256),
            nn.ReLU(inplace=True),
            nn.Linear(256, classes),
        )

    def forward(self, images):
        return self.classifier(torch.flatten(self.features(images), 1))


class AverageMeter:
    """The latest value, and the mean of all so far."""

    def __init__(self):
        self.val = self.sum = self.count = 0

    @property
    def avg(self):
        return self.sum / max(1, self.count)

    def update(self, value, n=1):
        self.val = value
        self.sum += value * n
        self.count += n


class Stop:
    """Set by SIGTERM, which SageMaker sends to process 1 two minutes before it kills the container.

    Under AWS's training toolkit the script is not process 1 and never gets it: the checkpoint at the end
    of every epoch is then what a stopped or interrupted job resumes from.
    """

    def __init__(self, device):
        self.device = device
        self.asked = False
        signal.signal(signal.SIGTERM, self._handle)

    def _handle(self, signum, frame):
        self.asked = True

    def agreed(self):
        """True on every rank as soon as one was asked: a rank that left alone would hang the others."""
        if dist.get_world_size() == 1:
            return self.asked
        asked = torch.tensor([float(self.asked)], device=self.device)
        dist.all_reduce(asked, op=dist.ReduceOp.MAX)
        return bool(asked.item())


def init_distributed():
    """Join the process group and return this process's device."""
    try:
        # Importing it registers the backend "smddp".
        import smdistributed.dataparallel.torch.torch_smddp  # noqa: F401

        backend = "smddp"
    except ImportError:
        backend = "nccl" if torch.cuda.is_available() else "gloo"
        print(f"This image has no smdistributed: using {backend}", flush=True)

    # Without a launcher there is one process for each host.
    hosts = json.loads(os.environ.get("SM_HOSTS", '["localhost"]'))
    os.environ.setdefault("WORLD_SIZE", str(len(hosts)))
    os.environ.setdefault("RANK", str(hosts.index(os.environ.get("SM_CURRENT_HOST", hosts[0]))))
    os.environ.setdefault("LOCAL_RANK", "0")
    os.environ.setdefault("MASTER_ADDR", hosts[0])
    os.environ.setdefault("MASTER_PORT", "7777")

    dist.init_process_group(backend=backend)
    if not torch.cuda.is_available():
        # Half of the cores, shared by the host's processes: PyTorch would take them all in each process,
        # and threads that wait for one another without a core of their own are slower than one thread.
        cores = int(os.environ.get("SM_NUM_CPUS", os.cpu_count()))
        processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        torch.set_num_threads(max(1, cores // 2 // processes))
        return torch.device("cpu")
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device


def load_data(args):
    """Return the training loader, its sampler and the validation loader of this rank."""
    if not os.path.isdir(args.data_dir):
        sys.exit(
            f"There is no channel `training` at {args.data_dir}: give the job one, made by preprocessing.py"
        )
    normalize = [transforms.ToTensor(), transforms.Normalize((0.3,), (0.35,))]
    size = (args.image_size, args.image_size)
    train_transform = transforms.Compose(
        [
            transforms.Grayscale(),
            transforms.Resize(size),
            transforms.RandomAffine(degrees=10, translate=(0.08, 0.08)),
            *normalize,
        ]
    )
    validation_transform = transforms.Compose([transforms.Grayscale(), transforms.Resize(size), *normalize])

    train_set = ImageFolder(os.path.join(args.data_dir, "train"), train_transform)
    sampler = DistributedSampler(train_set, seed=args.seed)
    pin = torch.cuda.is_available()
    train_loader = DataLoader(
        train_set,
        args.batch_size,
        sampler=sampler,
        num_workers=args.num_workers,
        pin_memory=pin,
        drop_last=True,
    )

    # A DistributedSampler would repeat images to give every rank as many; accuracy counts each one once.
    validation_set = ImageFolder(os.path.join(args.data_dir, "validation"), validation_transform)
    share = Subset(validation_set, range(dist.get_rank(), len(validation_set), dist.get_world_size()))
    validation_loader = DataLoader(share, 4 * args.batch_size, num_workers=args.num_workers, pin_memory=pin)
    return train_loader, sampler, validation_loader


def train_epoch(epoch, model, optimizer, loader, stop, device, args):
    """Train for one epoch; False when it was cut short by a stop."""
    batch_time, losses, top1 = AverageMeter(), AverageMeter(), AverageMeter()
    world_size = dist.get_world_size()
    model.train()
    end = time.perf_counter()
    for step, (images, labels) in enumerate(loader, start=1):
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        output = model(images)
        loss = F.cross_entropy(output, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

        if step % args.print_freq == 0 or step == len(loader):
            # Averaged over the ranks, and only when they are printed: it makes the GPU wait.
            precision = (output.argmax(1) == labels).float().mean() * 100
            reduced = torch.stack([loss.detach(), precision])
            dist.all_reduce(reduced)
            loss_value, precision_value = (reduced / world_size).tolist()
            losses.update(loss_value, args.batch_size)
            top1.update(precision_value, args.batch_size)
        batch_time.update(time.perf_counter() - end)
        end = time.perf_counter()

        if dist.get_rank() == 0 and (step % args.print_freq == 0 or step == len(loader)):
            images_per_step = world_size * args.batch_size
            print(
                f"Epoch : [{epoch}][{step}/{len(loader)}] "
                f"Train_Time = {batch_time.val:.3f} : ({batch_time.avg:.3f}) , "
                f"Train_Speed = {images_per_step / batch_time.val:.3f} ({images_per_step / batch_time.avg:.3f}), "
                f"Train_Loss = {losses.val:.10f} : ({losses.avg:.4f}) , "
                f"Train_Prec@1 = {top1.val:.3f} : ({top1.avg:.3f})",
                flush=True,
            )
        if stop.agreed():
            return False
    return True


@torch.no_grad()
def validate(epoch, model, loader, device):
    """Return loss and accuracy (in percent) over the validation images of all ranks."""
    model.eval()
    sums = torch.zeros(3, device=device)
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        output = model(images)
        sums[0] += F.cross_entropy(output, labels, reduction="sum")
        sums[1] += (output.argmax(1) == labels).sum()
        sums[2] += len(labels)
    dist.all_reduce(sums)
    loss, correct, count = sums.tolist()
    loss, precision = loss / count, 100 * correct / count
    if dist.get_rank() == 0:
        print(f"Epoch : [{epoch}] Val_Loss = {loss:.10f} , Val_Prec@1 = {precision:.3f}", flush=True)
    return loss, precision


def save_checkpoint(args, epoch, model, optimizer, history):
    """Save what a resumed job needs; `epoch` is the one that it begins with."""
    if dist.get_rank() != 0:
        return
    os.makedirs(args.checkpoint_dir, exist_ok=True)
    path = os.path.join(args.checkpoint_dir, "checkpoint.pth")
    # SageMaker copies this directory to S3 at any moment: it must never see half a file.
    torch.save(
        {
            "epoch": epoch,
            "model": model.module.state_dict(),
            "optimizer": optimizer.state_dict(),
            "history": history,
        },
        path + ".tmp",
    )
    os.replace(path + ".tmp", path)


def load_checkpoint(args, model, optimizer, device):
    """Return the epoch to begin with and the history so far: from the checkpoint, if there is one."""
    path = os.path.join(args.checkpoint_dir, "checkpoint.pth")
    if not os.path.exists(path):
        return 1, []
    checkpoint = torch.load(path, map_location=device)
    model.module.load_state_dict(checkpoint["model"])
    optimizer.load_state_dict(checkpoint["optimizer"])
    if dist.get_rank() == 0:
        print(f"Resuming from {path} at epoch {checkpoint['epoch']}", flush=True)
    return checkpoint["epoch"], checkpoint["history"]


def save_results(args, model, history):
    """Leave the model where SageMaker packs it, and the numbers beside it."""
    os.makedirs(args.model_dir, exist_ok=True)
    torch.save(model.module.state_dict(), os.path.join(args.model_dir, "model.pth"))
    os.makedirs(args.output_data_dir, exist_ok=True)
    with open(os.path.join(args.output_data_dir, "metrics.json"), "w") as file:
        json.dump({"world_size": dist.get_world_size(), "epochs": history}, file, indent=2)


def main():
    args = parse_args()
    torch.manual_seed(args.seed)
    device = init_distributed()
    stop = Stop(device)
    if dist.get_rank() == 0:
        print(
            f"{dist.get_world_size()} x {device.type}, backend {dist.get_backend()}, {vars(args)}", flush=True
        )

    train_loader, sampler, validation_loader = load_data(args)
    model = DistributedDataParallel(
        Net().to(device), device_ids=[device.index] if device.type == "cuda" else None
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)

    first_epoch, history = load_checkpoint(args, model, optimizer, device)
    if first_epoch > args.epochs:
        # Everything was trained before: the model is saved again, with its accuracy in the log.
        validate(first_epoch - 1, model, validation_loader, device)
    for epoch in range(first_epoch, args.epochs + 1):
        sampler.set_epoch(epoch)
        if not train_epoch(epoch, model, optimizer, train_loader, stop, device, args):
            # The cut epoch is done again from here: nothing learned is lost, some images are seen twice.
            save_checkpoint(args, epoch, model, optimizer, history)
            if dist.get_rank() == 0:
                print(f"Stopped in epoch {epoch}, checkpoint saved", flush=True)
            break
        loss, precision = validate(epoch, model, validation_loader, device)
        history.append({"epoch": epoch, "val_loss": loss, "val_prec1": precision})
        save_checkpoint(args, epoch + 1, model, optimizer, history)

    if dist.get_rank() == 0:
        save_results(args, model, history)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
