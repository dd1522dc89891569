#include "services/checkpoint/content_digest.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "tests/unit/services/checkpoint/safetensors_files.h"

namespace switchyard::checkpoint {
namespace {

std::string DigestOf(const std::string& file) {
  const TempDirectory dir;
  WriteFile(dir / "model.safetensors", file);
  auto source = OpenSafetensors(dir.path());
  EXPECT_TRUE(source.ok()) << source.status();
  auto digest = ContentDigest(**source);
  EXPECT_TRUE(digest.ok()) << digest.status();
  return *digest;
}

// A vector of 4 and a matrix of 100 × 100 floats, each byte of the data as given.
std::string File(const std::string& data, const char* matrix = "m", const char* shape = "[100,100]",
                 const char* dtype = "F32") {
  return FileOf("{" + Entry("norm", "F32", "[4]", 40000, 40016) + "," +
                    Entry(matrix, dtype, shape, 0, 40000) + "}",
                data);
}

TEST(ContentDigest, DependsOnContentsAndNotOnThePlace) {
  const std::string data(40016, 'a');
  const std::string digest = DigestOf(File(data));
  EXPECT_THAT(digest, testing::MatchesRegex("[0-9a-f]{32}"));
  EXPECT_EQ(digest, DigestOf(File(data)));
}

TEST(ContentDigest, SeesNamesShapesDtypesVectorsMiddlesAndBeginnings) {
  const std::string data(40016, 'a');
  std::vector<std::string> digests = {DigestOf(File(data)), DigestOf(File(data, "n")),
                                      DigestOf(File(data, "m", "[50,200]")),
                                      DigestOf(File(data, "m", "[100,100]", "I32"))};
  for (size_t at : {40000u, 40015u, 0u, 4095u, 20000u}) {
    std::string changed = data;
    changed[at] = 'b';
    digests.push_back(DigestOf(File(changed)));
  }
  for (size_t i = 0; i < digests.size(); ++i) {
    for (size_t j = 0; j < i; ++j) EXPECT_NE(digests[i], digests[j]) << i << " " << j;
  }
}

}  // namespace
}  // namespace switchyard::checkpoint
