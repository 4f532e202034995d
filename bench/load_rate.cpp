// How fast one layer of a sharded checkpoint is loaded, beside reading the same bytes: one line of JSON.
//   load_rate [FOLDER [ROUNDS]]
// FOLDER holds a checkpoint whose layer 0 is loaded; where it does not exist, one of 0.6 GiB in four shards is
// made there and removed at the end. In turn, ROUNDS times (default 9), all from the page cache:
//   read    read(2) of the layer's bytes in their order into memory whose pages exist already
//   fresh   the same into new memory, as a loader has to whose result outlives the next call
//   load    load_layer() in the type that is stored
// Medians, and the peak of resident memory during load_layer() over the bytes of the layer.
#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <string>
#include <vector>

#include "checkpoint/load.h"
#include "core/check.h"
#include "core/memory.h"
#include "moe/bench.h"

namespace {

namespace fs = std::filesystem;
using moe::checkpoint::Checkpoint;
using moe::checkpoint::LayerPlan;

constexpr int kShards = 4;
constexpr std::int64_t kHidden = 2048;
constexpr std::int64_t kIntermediate = 768;
constexpr std::int64_t kExperts = 64;

/// Layer 0 of a Qwen-like model in bf16, expert e in shard e mod kShards.
void make_checkpoint(const fs::path& folder) {
  fs::create_directories(folder);
  std::string index;
  for (int shard = 0; shard < kShards; ++shard) {
    std::string header;
    std::uint64_t end = 0;
    const std::string file = fmt::format("model-{:05}-of-{:05}.safetensors", shard + 1, kShards);
    const auto add = [&](const std::string& name, std::int64_t rows, std::int64_t columns) {
      const std::uint64_t begin = end;
      end += static_cast<std::uint64_t>(rows * columns) * 2;
      header += fmt::format(R"({}"{}":{{"dtype":"BF16","shape":[{},{}],"data_offsets":[{},{}]}})",
                            header.empty() ? "{" : ",", name, rows, columns, begin, end);
      index += fmt::format(R"({}"{}":"{}")", index.empty() ? "" : ",", name, file);
    };
    if (shard == 0) add("model.layers.0.mlp.gate.weight", kExperts, kHidden);
    for (std::int64_t expert = shard; expert < kExperts; expert += kShards) {
      const std::string prefix = fmt::format("model.layers.0.mlp.experts.{}.", expert);
      add(prefix + "gate_proj.weight", kIntermediate, kHidden);
      add(prefix + "up_proj.weight", kIntermediate, kHidden);
      add(prefix + "down_proj.weight", kHidden, kIntermediate);
    }
    header += "}";
    header.resize((header.size() + 7) / 8 * 8, ' ');
    const std::uint64_t length = header.size();
    std::ofstream out(folder / file, std::ios::binary);
    out.write(reinterpret_cast<const char*>(&length), sizeof(length));
    out << header;
    std::vector<std::uint16_t> values(std::size_t{1} << 20);
    std::uint32_t state = static_cast<std::uint32_t>(shard) + 1;
    for (std::uint16_t& value : values) {
      state = state * 1664525U + 1013904223U;
      value = static_cast<std::uint16_t>(0x3c00U | (state >> 25));  // bf16 around 0.01
    }
    for (std::uint64_t left = end; left > 0;) {
      const std::uint64_t now = std::min<std::uint64_t>(left, values.size() * sizeof(values[0]));
      out.write(reinterpret_cast<const char*>(values.data()), static_cast<std::streamsize>(now));
      left -= now;
    }
    if (!out.flush()) moe::fail(moe::ErrorCode::kIo, "cannot write {}", (folder / file).string());
  }
  std::ofstream(folder / "model.safetensors.index.json") << R"({"weight_map":{)" << index << "}}";
}

/// A tensor's bytes within its file.
struct Extent {
  int file = -1;
  std::uint64_t offset = 0;
  std::size_t bytes = 0;
};

/// The layer's tensors by file and offset, the files open for read(2).
std::vector<Extent> extents_of(const LayerPlan& plan, const fs::path& folder,
                               Checkpoint& checkpoint) {
  std::vector<Extent> extents;
  std::vector<std::pair<std::string, int>> files;
  for (const auto* tensor : plan.with(moe::checkpoint::Use::kConsumed)) {
    const std::string file = checkpoint.names().find(tensor->name)->second;
    auto known =
        std::find_if(files.begin(), files.end(), [&](const auto& f) { return f.first == file; });
    if (known == files.end()) {
      files.emplace_back(file, open((folder / file).c_str(), O_RDONLY));
      if (files.back().second < 0) moe::fail(moe::ErrorCode::kIo, "cannot read {}", file);
      known = files.end() - 1;
    }
    // A file's data begins behind its header and the header's length.
    std::uint64_t header = 0;
    if (pread(known->second, &header, sizeof(header), 0) != sizeof(header)) {
      moe::fail(moe::ErrorCode::kIo, "cannot read {}", file);
    }
    const auto located = checkpoint.locate(tensor->name);
    const std::byte* first = located.tensor->data.data();
    for (const auto& [name, other] : located.shard->tensors()) {
      first = std::min(first, other.data.data());
    }
    extents.push_back(
        {known->second,
         sizeof(header) + header + static_cast<std::uint64_t>(located.tensor->data.data() - first),
         located.tensor->data.size()});
  }
  std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) {
    return std::pair(a.file, a.offset) < std::pair(b.file, b.offset);
  });
  return extents;
}

void read_all(const std::vector<Extent>& extents, std::byte* to) {
  for (const Extent& extent : extents) {
    for (std::size_t done = 0; done < extent.bytes;) {
      const ssize_t got = pread(extent.file, to + done, extent.bytes - done,
                                static_cast<off_t>(extent.offset + done));
      if (got <= 0)
        moe::fail(moe::ErrorCode::kIo, "a read of {} bytes failed", extent.bytes - done);
      done += static_cast<std::size_t>(got);
    }
    to += extent.bytes;
  }
}

double seconds_of(const std::function<void()>& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2),
                   values.end());
  return values[values.size() / 2];
}

void measure(const fs::path& folder, int rounds) {
  Checkpoint checkpoint = Checkpoint::open(folder.string());
  const LayerPlan plan = moe::checkpoint::plan_layer(checkpoint, 0);
  const std::vector<Extent> extents = extents_of(plan, folder, checkpoint);
  std::size_t bytes = 0;
  for (const Extent& extent : extents) bytes += extent.bytes;
  std::vector<double> read;
  std::vector<double> fresh;
  std::vector<double> load;
  std::vector<double> share;
  std::uint64_t peak = 0;
  const moe::HostBuffer there(bytes);
  for (int round = -1; round < rounds;
       ++round) {  // the first brings everything into the page cache
    const double r = seconds_of([&] { read_all(extents, there.as<std::byte>()); });
    moe::HostBuffer made;  // released when its time has been taken, as the layer below
    const double f = seconds_of([&] {
      made = moe::HostBuffer(bytes);
      read_all(extents, made.as<std::byte>());
    });
    made = {};
    moe::reset_peak_resident();
    const std::uint64_t before = moe::resident_bytes();
    moe::checkpoint::LayerContents loaded;
    const double l =
        seconds_of([&] { loaded = moe::checkpoint::load_layer(plan, moe::DType::kBF16); });
    if (round < 0) continue;
    peak =
        std::max(peak, moe::peak_resident_bytes() - std::min(before, moe::peak_resident_bytes()));
    read.push_back(r);
    fresh.push_back(f);
    load.push_back(l);
    share.push_back(r / l);
  }
  const double gb = static_cast<double>(bytes) / 1e9;
  const moe::MachineInfo machine = moe::describe_machine();
  fmt::print(
      R"({{"cpu":"{}","kernel":"{}","bytes":{},"tensors":{},"rounds":{},"threads":{},"read_gbs":{:.3f},"fresh_gbs":{:.3f},)"
      R"("load_gbs":{:.3f},"load_over_read":{:.3f},"load_over_fresh":{:.3f},"peak_over_bytes":{:.3f}}})"
      "\n",
      machine.cpu, machine.kernel, bytes, extents.size(), rounds, machine.threads,
      gb / median(read), gb / median(fresh), gb / median(load), median(share),
      median(fresh) / median(load), static_cast<double>(peak) / static_cast<double>(bytes));
}

}  // namespace

int main(int argc, char** argv) try {
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 9;
  MOE_CHECK(rounds >= 1, "rounds={} must be at least 1", rounds);
  const fs::path folder =
      argc > 1 ? fs::path(argv[1])
               : fs::temp_directory_path() / fmt::format("moe-load-rate-{}", getpid());
  const bool made = !fs::exists(folder);
  if (made) make_checkpoint(folder);
  measure(folder, rounds);
  if (made) fs::remove_all(folder);
  return 0;
} catch (const std::exception& error) {
  fmt::print(stderr, "{}\n", error.what());
  return 1;
}
